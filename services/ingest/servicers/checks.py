"""Checks of request fields that documents and searches share; each refusal names its field."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.struct_pb2 import Struct, Value

from services.common.context import current_caller
from services.common.errors import NotFound, invalid

COLLECTION_CHARS_MAX = 256
METADATA_BYTES_MAX = 64 * 1024
METADATA_DEPTH_MAX = 16
PRINCIPALS_MAX = 100
PRINCIPAL_CHARS_MAX = 256


def check_collection(name: str) -> str:
    """A collection's name. A token for certain collections finds no other one."""
    check_text("collection", name, COLLECTION_CHARS_MAX)
    allowed = current_caller().context.collections
    if allowed and name not in allowed:
        raise NotFound("no such collection", reason="COLLECTION_NOT_FOUND")
    return name


def check_text(field: str, value: str, chars_max: int, chars_min: int = 1) -> str:
    """A text of bounded length."""
    if len(value) < chars_min:
        raise invalid(field, "is missing")
    if len(value) > chars_max:
        raise invalid(field, f"is longer than {chars_max} characters")
    return value


def check_principals(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """Names of those who may see a document, or who search."""
    principals = tuple(values)
    if len(principals) > PRINCIPALS_MAX:
        raise invalid(field, f"has more than {PRINCIPALS_MAX} entries")
    for number, principal in enumerate(principals):
        check_text(f"{field}[{number}]", principal, PRINCIPAL_CHARS_MAX)
    return principals


def check_metadata(field: str, metadata: Struct) -> Struct:
    """Metadata of bounded size and depth, with finite numbers."""
    if metadata.ByteSize() > METADATA_BYTES_MAX:
        raise invalid(field, f"is larger than {METADATA_BYTES_MAX} bytes")
    for value in metadata.fields.values():
        _check_value(field, value, 1)
    return metadata


def _check_value(field: str, value: Value, depth: int) -> None:
    if depth > METADATA_DEPTH_MAX:
        raise invalid(field, f"is nested deeper than {METADATA_DEPTH_MAX} levels")
    kind = value.WhichOneof("kind")
    if kind is None:
        raise invalid(field, "has a field without a value")
    if kind == "number_value" and not math.isfinite(value.number_value):
        raise invalid(field, "has a number that is not finite")
    if kind == "struct_value":
        for inner in value.struct_value.fields.values():
            _check_value(field, inner, depth + 1)
    elif kind == "list_value":
        for inner in value.list_value.values:
            _check_value(field, inner, depth + 1)
