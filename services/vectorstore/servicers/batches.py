"""The points of one write, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sealcomb.v1 import vector_service_pb2 as pb
from services.common.errors import InvalidArgument, invalid
from services.vectorstore import metadata
from services.vectorstore.index import Metric, Vectors
from services.vectorstore.operations import UpdatePoints, UpsertPoints
from services.vectorstore.servicers import convert

# Beyond the 4 MiB that the edge lets through in one unary call, with room for how fields are packed.
MESSAGE_BYTES_MAX = 5 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """The good points of a write: their places in the request, the operation, and by point its fields."""

    places: Sequence[int]
    operation: UpsertPoints
    fields: Sequence[metadata.Fields]


@dataclass(frozen=True, slots=True)
class Update:
    """The points of an update."""

    operation: UpdatePoints
    fields: Sequence[metadata.Fields]


# Told of a bad point: its place in the request and what is wrong.
OnBad = Callable[[int, InvalidArgument], None]


def upsert(points: Sequence[pb.Point], dimension: int, metric: Metric, on_bad: OnBad | None = None) -> Batch:
    """The points of an upsert. A bad one is told to `on_bad` and left out, or raised where nobody listens."""
    _check_count(len(points), "points")
    places, seen = [], set[str]()
    ids, vectors, raws, texts = list[str](), list[Vectors](), list[bytes](), list[str]()
    for place, point in enumerate(points):
        field = f"points[{place}]"
        try:
            convert.check_id(point.id, f"{field}.id")
            if point.id in seen:
                raise invalid(f"{field}.id", "occurs twice in this call")
            vector = convert.vector(point.vector, point.vector_f32, dimension, metric, f"{field}.vector")
            raw = metadata.encode(point.metadata, f"{field}.metadata")
            text = convert.text(point.text, f"{field}.text")
        except InvalidArgument as error:
            if on_bad is None:
                raise
            on_bad(place, error)
            continue
        seen.add(point.id)
        places.append(place)
        ids.append(point.id)
        vectors.append(vector)
        raws.append(raw)
        texts.append(text)
    stacked = np.stack(vectors) if vectors else np.empty((0, dimension), np.float32)
    fields = [metadata.fields_of(raw) for raw in raws]
    return Batch(places, UpsertPoints(ids, stacked, raws, texts), fields)


def update(updates: Sequence[pb.PointUpdate]) -> Update:
    """The points of an update, all valid or InvalidArgument for the first that is not."""
    _check_count(len(updates), "updates")
    ids, raws, texts = list[str](), list[bytes | None](), list[str | None]()
    seen = set[str]()
    for place, wanted in enumerate(updates):
        field = f"updates[{place}]"
        convert.check_id(wanted.id, f"{field}.id")
        if wanted.id in seen:
            raise invalid(f"{field}.id", "occurs twice in this call")
        seen.add(wanted.id)
        has_metadata, has_text = wanted.HasField("metadata"), wanted.HasField("text")
        if not has_metadata and not has_text:
            raise invalid(field, "changes nothing; set metadata or text")
        ids.append(wanted.id)
        raws.append(metadata.encode(wanted.metadata, f"{field}.metadata") if has_metadata else None)
        texts.append(convert.text(wanted.text, f"{field}.text") if has_text else None)
    fields = [metadata.fields_of(raw or b"") for raw in raws]
    return Update(UpdatePoints(ids, raws, texts), fields)


def _check_count(count: int, field: str) -> None:
    if not count:
        raise invalid(field, "is empty")
    if count > convert.POINTS_MAX:
        raise invalid(field, f"has more than {convert.POINTS_MAX}; send several calls")
