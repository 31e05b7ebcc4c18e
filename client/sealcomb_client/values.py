"""Python values as the API's messages, and back: metadata, filters, vectors, durations."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import duration_pb2, json_format, struct_pb2

from sealcomb.v1 import filter_pb2

FilterLike = filter_pb2.Filter | Mapping[str, Any] | None


def struct_of(values: Mapping[str, Any] | None) -> struct_pb2.Struct | None:
    """Metadata as a Struct; None for none."""
    if values is None:
        return None
    struct = struct_pb2.Struct()
    struct.update(dict(values))
    return struct


def filter_of(condition: FilterLike) -> filter_pb2.Filter | None:
    """A filter from its message or the same in JSON: `{"eq": {"field": "team", "value": "bees"}}`.

    Raises ValueError for what is no filter.
    """
    if condition is None or isinstance(condition, filter_pb2.Filter):
        return condition
    try:
        return json_format.ParseDict(dict(condition), filter_pb2.Filter())
    except json_format.ParseError as error:
        raise ValueError(f"not a filter: {error}") from None


def vector_bytes(vector: Iterable[float] | bytes) -> bytes:
    """A vector as little-endian float32 bytes; bytes pass through."""
    if isinstance(vector, bytes):
        return vector
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def vector_of(raw: bytes) -> list[float]:
    """The floats in little-endian float32 bytes."""
    numbers = array("f")
    numbers.frombytes(raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def duration_of(seconds: float | None) -> duration_pb2.Duration | None:
    """Seconds as a Duration; None for none."""
    if seconds is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
