"""Bytes that are no message of the method: refused by the name of the field, never in the parser's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealcomb.v1 import token_service_pb2, vector_service_pb2
from services.common.errors import InvalidArgument
from services.common.rpc.requests import Undecodable, checked, tolerant

BAD = b"\xff\xfe"


def decode(message: Any, data: bytes) -> Any:
    decoder = tolerant(message.FromString)
    assert decoder is not None
    return decoder(data)


def test_a_good_message_passes() -> None:
    request = token_service_pb2.RevokeTokenRequest(id="a")
    assert checked(decode(token_service_pb2.RevokeTokenRequest, request.SerializeToString())) == request


def test_a_text_that_is_not_utf8_is_named_by_its_path() -> None:
    good = vector_service_pb2.UpsertRequest(points=[{"id": "a"}, {"id": "b", "text": "XX"}])  # type: ignore[list-item]
    data = good.SerializeToString().replace(b"XX", BAD)
    with pytest.raises(InvalidArgument) as caught:
        checked(decode(vector_service_pb2.UpsertRequest, data))
    assert [violation.field for violation in caught.value.fields] == ["points[1].text"]


@pytest.mark.parametrize("data", [b"\x0a\xff\xff\xff", b"\x0a", b"\x0f", b"\xff" * 12, b"\x0a\x05ab"])
def test_corrupt_bytes_are_refused_without_a_field(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        checked(decode(token_service_pb2.RevokeTokenRequest, data))
    assert caught.value.reason == "REQUEST_MALFORMED"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_refusal(data: bytes) -> None:
    """A11: the search for the bad field ends on any input."""
    decoded = decode(vector_service_pb2.UpsertRequest, data)
    assert isinstance(decoded, Undecodable | vector_service_pb2.UpsertRequest)


async def test_a_bad_message_in_a_stream_is_refused_when_it_comes() -> None:
    async def stream() -> AsyncIterator[Any]:
        yield token_service_pb2.RevokeTokenRequest(id="a")
        yield decode(token_service_pb2.RevokeTokenRequest, b"\x0a\x02" + BAD)

    requests = checked(stream())
    assert (await anext(requests)).id == "a"
    with pytest.raises(InvalidArgument, match="id: is not valid UTF-8"):
        await anext(requests)
