"""`sealcomb points`: your own vectors, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO, TypeVar

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from sealcomb.v1 import vector_service_pb2
from sealcomb_client.cli.options import FILTER
from sealcomb_client.cli.session import Session, command
from sealcomb_client.values import vector_of

# As for any other value that is wrong.
_SOME_FAILED = 5
_Message = TypeVar("_Message", bound=Message)


def register(main: click.Group) -> None:
    """Adds the group."""
    main.add_command(points)


@click.group()
def points() -> None:
    """Write and query points with vectors of your own."""


@command(points)
@click.argument("collection")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--atomic", is_flag=True, help="Leave out the whole batch of a bad point.")
def upsert(session: Session, collection: str, file: TextIO, atomic: bool) -> None:
    """Write points from FILE or standard input: one JSON object a line, or one JSON array.

    A point is {"id": "a", "vector": [0.1, 0.2], "metadata": {...}, "text": "..."}. Bad points are named and
    left out; with --atomic so are the points that are sent beside them.
    """
    done = session.client.points.upsert_many(collection, _read_points(file), atomic_batches=atomic)
    for failure in done.failures:
        click.echo(f"points[{failure.position}].{failure.field}: {failure.message}", err=True)
    session.output.value({"upserted": done.upserted, "failed": done.failed})
    if done.failed:
        raise click.exceptions.Exit(_SOME_FAILED)


@command(points)
@click.argument("collection")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
def update(session: Session, collection: str, file: TextIO) -> None:
    """Replace metadata or text of at most 1,000 points, from FILE or standard input as JSON like `upsert`.

    An update is {"id": "a", "metadata": {...}, "text": "..."}; what is left out stays, and so do vectors.
    """
    updates = _read(file, vector_service_pb2.PointUpdate, "update")
    answer = session.client.points.update(collection, updates)
    session.output.value({"updated": answer.updated, "missing": list(answer.missing)})


@command(points, "list")
@click.argument("collection")
@FILTER
def list_(session: Session, collection: str, condition: dict[str, Any] | None) -> None:
    """Print all points, or those that match, in order of id."""
    listed = session.client.points.list(collection, filter=condition)
    session.output.rows(listed, ("id", "version", "metadata", "text"))


@command(points)
@click.argument("collection")
@click.argument("vector")
@click.option("--top-k", "-k", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--with-vectors", is_flag=True)
@click.option("--explain", is_flag=True, help="Print how the points are found, instead of them.")
@FILTER
def query(
    session: Session,
    collection: str,
    vector: str,
    top_k: int,
    with_vectors: bool,
    explain: bool,
    condition: dict[str, Any] | None,
) -> None:
    """Find the points nearest to VECTOR, a JSON array of numbers."""
    if explain:
        answer = session.client.points.explain(
            collection, _parse_vector(vector), top_k=top_k, filter=condition
        )
        session.output.value({"cost": answer.cost, **json_format.MessageToDict(answer.explanation)})
        return
    hits = session.client.points.query(
        collection, _parse_vector(vector), top_k=top_k, filter=condition, with_vectors=with_vectors
    )
    for hit in hits:
        fields: dict[str, Any] = {"id": hit.id, "score": hit.score}
        if hit.HasField("metadata"):
            fields["metadata"] = json_format.MessageToDict(hit.metadata)
        if hit.text:
            fields["text"] = hit.text
        if with_vectors:
            fields["vector"] = vector_of(hit.vector_f32)
        session.output.value(fields)
        session.output.say("")
    if not hits:
        session.output.say("none")


@command(points)
@click.argument("collection")
@click.argument("ids", nargs=-1, required=True)
def get(session: Session, collection: str, ids: tuple[str, ...]) -> None:
    """Print points by id."""
    session.output.rows(session.client.points.get(collection, ids), ("id", "metadata", "text"))


@command(points)
@click.argument("collection")
@FILTER
def count(session: Session, collection: str, condition: dict[str, Any] | None) -> None:
    """Count points."""
    session.output.value({"count": session.client.points.count(collection, filter=condition)})


@command(points)
@click.argument("collection")
@click.argument("ids", nargs=-1)
@FILTER
def delete(session: Session, collection: str, ids: tuple[str, ...], condition: dict[str, Any] | None) -> None:
    """Delete points by id or by filter."""
    if bool(ids) == (condition is not None):
        raise click.UsageError("give either ids or --filter")
    session.output.value({"deleted": session.client.points.delete(collection, ids, filter=condition)})


def _parse_vector(text: str) -> list[float]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("VECTOR must be a JSON array of numbers, such as [0.1, 0.2]") from None
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        raise ValueError("VECTOR must be a JSON array of numbers, such as [0.1, 0.2]")
    return values


def _read_points(file: TextIO) -> Iterator[vector_service_pb2.Point]:
    return _read(file, vector_service_pb2.Point, "point")


def _read(file: TextIO, kind: type[_Message], name: str) -> Iterator[_Message]:
    first = file.readline()
    if first.lstrip().startswith("["):
        try:
            items = json.loads(first + file.read())
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        for index, item in enumerate(items):
            yield _parsed(item, kind, f"{name}s[{index}]", name)
        return
    number = 0
    line = first
    while line:
        number += 1
        if line.strip():
            try:
                item = json.loads(line)
            except json.JSONDecodeError:
                raise ValueError(f"line {number}: not a JSON object") from None
            yield _parsed(item, kind, f"line {number}", name)
        line = file.readline()


def _parsed(item: Any, kind: type[_Message], where: str, name: str) -> _Message:
    try:
        return json_format.ParseDict(item, kind())
    except (json_format.ParseError, AttributeError) as error:
        raise ValueError(f"{where}: not a {name}: {error}") from None
