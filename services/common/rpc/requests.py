"""Requests that are no messages: refused like any other bad argument, by the field if that can be told.

grpc would answer UNKNOWN with the parser's own words. Here the bytes are kept until the call is
admitted, and then refused; what the parser said stays inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from services.common.errors import InvalidArgument, invalid

_DEPTH_MAX = 100
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Bytes that are not the message which a method takes; `field` is the bad one, if that can be told."""

    field: str


class _Corrupt(Exception):
    pass


def tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The deserialiser, answering Undecodable instead of raising."""
    if deserialize is None:
        return None
    descriptor: Descriptor | None = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Undecodable(_bad_text(descriptor, data) if descriptor is not None else "")

    return decode


def checked(request: Any) -> Any:
    """The request, or the stream of requests, as a handler may have it. Raises InvalidArgument."""
    if hasattr(request, "__aiter__"):
        return _checked_stream(request)
    if isinstance(request, Undecodable):
        raise _refusal(request)
    return request


async def _checked_stream(requests: Any) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Undecodable):
            raise _refusal(request)
        yield request


def _refusal(request: Undecodable) -> InvalidArgument:
    if request.field:
        return invalid(request.field, "is not valid UTF-8")
    return InvalidArgument("the request is not a message of this method", reason="REQUEST_MALFORMED")


def _bad_text(descriptor: Descriptor, data: bytes) -> str:
    try:
        return _find_bad_text(descriptor, memoryview(data), 0)
    except _Corrupt:
        return ""


def _find_bad_text(descriptor: Descriptor, data: memoryview, depth: int) -> str:
    """The path of the first text field that is not UTF-8; empty for none. Raises _Corrupt."""
    if depth > _DEPTH_MAX:
        raise _Corrupt
    seen: dict[int, int] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _value(data, at, key & 7)
        number = key >> 3
        field = descriptor.fields_by_number.get(number)
        if field is None or value is None:
            continue
        index = seen[number] = seen.get(number, -1) + 1
        name = f"{field.name}[{index}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(value):
            return name
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
            inner = _find_bad_text(field.message_type, value, depth + 1)
            if inner:
                return f"{name}.{inner}"
    return ""


def _value(data: memoryview, at: int, wire_type: int) -> tuple[memoryview | None, int]:
    """The bytes of a length-delimited value, None for any other, and where the next field begins."""
    if wire_type == 0:
        return None, _varint(data, at)[1]
    if wire_type == 2:
        length, at = _varint(data, at)
        end = at + length
    elif wire_type in _FIXED_BYTES:
        end = at + _FIXED_BYTES[wire_type]
    else:
        raise _Corrupt
    if end > len(data):
        raise _Corrupt
    return (data[at:end] if wire_type == 2 else None), end


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Corrupt
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Corrupt


def _is_utf8(value: memoryview) -> bool:
    try:
        str(value, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
