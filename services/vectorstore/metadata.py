"""Metadata: a google.protobuf.Struct, kept as its bytes and read as fields for filters.

The bytes are what the caller gets back. A field is a dotted path to a scalar; an array's scalars
all count as values of its field; arrays within arrays and structs within arrays are kept but are no
fields. A null is kept but is not there for filters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from google.protobuf.struct_pb2 import Struct, Value

from services.common.errors import invalid

Scalar = str | float | bool
Fields = dict[str, tuple[Scalar, ...]]

SIZE_BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
PATH_CHARS_MAX = 512


def encode(struct: Struct, field: str) -> bytes:
    """The struct's bytes, empty for an empty struct. Raises InvalidArgument that names `field`."""
    if not struct.fields:
        return b""
    if struct.ByteSize() > SIZE_BYTES_MAX:
        raise invalid(field, f"is larger than {SIZE_BYTES_MAX} bytes; keep large content elsewhere")
    _check_struct(struct, field, 1)
    return struct.SerializeToString(deterministic=True)


def fields_of(raw: bytes) -> Fields:
    """The fields in metadata bytes; a field without scalars has an empty tuple."""
    if not raw:
        return {}
    found: dict[str, list[Scalar]] = {}
    _walk(Struct.FromString(raw), "", found)
    return {path: tuple(values) for path, values in found.items() if len(path) <= PATH_CHARS_MAX}


def _walk(struct: Struct, prefix: str, found: dict[str, list[Scalar]]) -> None:
    for key, value in struct.fields.items():
        path = prefix + key
        kind = value.WhichOneof("kind")
        if kind is None or kind == "null_value":
            continue
        values = found.setdefault(path, [])
        if kind == "struct_value":
            _walk(value.struct_value, path + ".", found)
        elif kind == "list_value":
            values.extend(_scalars(value.list_value.values))
        else:
            values.append(getattr(value, kind))


def _scalars(values: Iterable[Value]) -> Iterator[Scalar]:
    for value in values:
        kind = value.WhichOneof("kind")
        if kind in ("string_value", "number_value", "bool_value"):
            yield getattr(value, kind)


def _check_struct(struct: Struct, field: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise invalid(field, f"is nested deeper than {DEPTH_MAX} levels")
    for key, value in struct.fields.items():
        if not key:
            raise invalid(field, "has an empty key")
        _check_value(value, field, depth)


def _check_value(value: Value, field: str, depth: int) -> None:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        if not math.isfinite(value.number_value):
            raise invalid(field, "holds a number that is not finite")
    elif kind == "struct_value":
        _check_struct(value.struct_value, field, depth + 1)
    elif kind == "list_value":
        if depth >= DEPTH_MAX:
            raise invalid(field, f"is nested deeper than {DEPTH_MAX} levels")
        for element in value.list_value.values:
            _check_value(element, field, depth + 1)
    elif kind is None:
        raise invalid(field, "holds a value that is not set")
