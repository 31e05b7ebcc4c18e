"""`sealcomb collections`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sealcomb.v1.collection_service_pb2 import ExportFrame
from sealcomb_client.cli.options import RECEIPT, keep_receipt
from sealcomb_client.cli.output import whole_file
from sealcomb_client.cli.session import Session, command
from sealcomb_client.collections import read_frames, write_frames

_COLUMNS = ("name", "points", "documents", "dimension", "metric", "embedder", "create_time")

_FILE = click.Path(dir_okay=False, path_type=Path)

INDEXED = click.option(
    "--index", "indexed", multiple=True, metavar="FIELD", help="Index only this metadata field; repeatable."
)


def register(main: click.Group) -> None:
    """Adds the group."""
    main.add_command(collections)


@click.group()
def collections() -> None:
    """Create, list and delete collections."""


@command(collections)
@click.argument("name")
@click.option("--embedder", default="", help='Embedding model of a text collection ("default").')
@click.option("--dimension", type=click.IntRange(1, 4096), help="Dimension of your own vectors, instead.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "l2"]), default="cosine", show_default=True)
@INDEXED
def create(
    session: Session,
    name: str,
    embedder: str,
    dimension: int | None,
    metric: str,
    indexed: tuple[str, ...],
) -> None:
    """Create a text collection, or one of your own vectors with --dimension."""
    if not embedder and dimension is None:
        embedder = "default"
    made = session.client.collections.create(
        name, embedder=embedder, dimension=dimension or 0, metric=metric, indexed=indexed or None
    )
    session.output.value(made)


@command(collections, "list")
def list_(session: Session) -> None:
    """List all collections."""
    session.output.rows(session.client.collections.list(), _COLUMNS)


@command(collections)
@click.argument("name")
def get(session: Session, name: str) -> None:
    """Describe one collection."""
    session.output.value(session.client.collections.get(name))


@command(collections)
@click.argument("name")
@click.option("--ef", type=click.IntRange(0, 4096), help="Frontier of queries that name none; 0: default.")
@INDEXED
@click.option("--index-all", is_flag=True, help="Index every field again.")
def update(session: Session, name: str, ef: int | None, indexed: tuple[str, ...], index_all: bool) -> None:
    """Change how a collection is searched and which metadata is indexed."""
    changed = session.client.collections.update(
        name, default_ef=ef, indexed=indexed or None, index_all=index_all
    )
    session.output.value(changed)


@command(collections)
@click.argument("name")
def stats(session: Session, name: str) -> None:
    """Print what a collection holds and takes."""
    session.output.value(session.client.collections.stats(name))


@command(collections)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@RECEIPT
def delete(session: Session, name: str, yes: bool, receipt: Path | None) -> None:
    """Destroy a collection's keys and data."""
    if not yes:
        click.confirm(f"Destroy {name} and all that is in it, for good?", abort=True, err=True)
    keep_receipt(session.client.collections.delete(name), receipt)
    session.output.value({"deleted": name})


@command(collections, "export")
@click.argument("name")
@click.argument("file", type=_FILE)
@click.option("--clear", is_flag=True, help="Readable by whoever has the file, importable by any account.")
def export(session: Session, name: str, file: Path, clear: bool) -> None:
    """Write all points of a collection to FILE, sealed for your account."""
    points = 0
    with whole_file(file, private=clear) as out:
        for frame in write_frames(session.client.collections.export(name, clear=clear), out):
            points = max(points, frame.header.points, frame.seal.points)
            if sys.stderr.isatty():
                click.echo(f"\r{out.tell():,} bytes", nl=False, err=True)
    session.output.value({"written": str(file), "points": points, "bytes": file.stat().st_size})


@command(collections, "import")
@click.argument("name")
@click.argument("file", type=_FILE)
def import_(session: Session, name: str, file: Path) -> None:
    """Make a new collection NAME of an export: all of it, or nothing."""

    def frames() -> Iterator[ExportFrame]:
        with file.open("rb") as content:
            yield from read_frames(content)

    try:
        for _ in frames():
            pass
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    session.output.value(session.client.collections.import_frames(name, frames))
