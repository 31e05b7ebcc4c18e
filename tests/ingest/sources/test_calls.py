"""When a source says to come back, and cursors that are not what they should be."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.egress.client import Answer
from services.ingest.sources.answers import Row, web_address
from services.ingest.sources.calls import basic, bearer, retry_after_s
from services.ingest.sources.contract import CredentialRefused, CursorExpired, SourceAnswerInvalid
from services.ingest.sources.cursors import CURSOR_BYTES_MAX, CursorState, read_cursor, write_cursor
from services.ingest.sources.notion import NotionSettings
from tests.ingest.sources.opening import NOW_S, TestClock


class Place(CursorState):
    at: str = ""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "999999999"}, 86_400.0),
        ({"retry-after": "Tue, 05 May 2026 16:53:30 GMT"}, 10.0),
        ({"retry-after": "Tue, 05 May 2026 16:53:30 -0000"}, 10.0),
        ({"retry-after": "Tue, 05 May 1998 16:53:30 GMT"}, 0.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW_S) + 5)}, 6.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}, 1.0),
        ({"x-ratelimit-remaining": "7", "x-ratelimit-reset": str(int(NOW_S) + 5)}, None),
    ],
)
def test_the_time_to_come_back_is_read_from_what_sources_send(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(Answer(429, headers, b"", "https://x.test/"), TestClock()) == seconds


@given(st.text(max_size=40))
def test_no_text_makes_reading_the_time_fail(text: str) -> None:
    found = retry_after_s(Answer(429, {"retry-after": text}, b"", ""), TestClock())
    assert found is None or 0 <= found <= 86_400


@given(st.text(max_size=30))
def test_a_token_is_a_header_or_refused(token: str) -> None:
    try:
        value, extra = bearer("GET", "", {}, b"", token)
    except CredentialRefused:
        return
    assert value.isascii()
    assert value.isprintable()
    assert extra == {}


def test_a_user_and_password_of_any_characters_is_a_header() -> None:
    assert basic("GET", "", {}, b"", "ann:pä:ss\n")[0] == "Basic YW5uOnDDpDpzcwo="
    with pytest.raises(CredentialRefused):
        basic("GET", "", {}, b"", "no colon")


@given(st.text(max_size=30))
def test_a_cursor_comes_back_only_to_its_settings(at: str) -> None:
    mine, other = NotionSettings(), NotionSettings(databases=("1" * 32,))
    cursor = write_cursor(mine, Place(at=at))
    assert read_cursor(mine, Place, cursor) == Place(at=at)
    with pytest.raises(CursorExpired):
        read_cursor(other, Place, cursor)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_cursor_begin_again(data: bytes) -> None:
    with pytest.raises(CursorExpired):
        read_cursor(NotionSettings(), Place, data)


@pytest.mark.parametrize("state", [{"at": 5}, {"at": "", "more": 1}, [], None, "x"])
def test_a_cursor_of_an_older_form_begins_again(state: object) -> None:
    whole = json.loads(zlib.decompress(write_cursor(NotionSettings(), Place())))
    for body in ({**whole, "state": state}, state):
        with pytest.raises(CursorExpired):
            read_cursor(NotionSettings(), Place, zlib.compress(json.dumps(body).encode()))


def test_a_cursor_that_unpacks_without_end_begins_again() -> None:
    with pytest.raises(CursorExpired):
        read_cursor(NotionSettings(), Place, zlib.compress(bytes(CURSOR_BYTES_MAX * 4)))


@pytest.mark.parametrize("value", [None, 5, [], {}, "", True])
def test_a_field_of_another_kind_is_an_error_of_the_source(value: object) -> None:
    row = Row({"field": value})
    with pytest.raises(SourceAnswerInvalid):
        row.text("field")
    if value is not None and value != 5:
        with pytest.raises(SourceAnswerInvalid):
            row.number_or("field")
    if not isinstance(value, list):
        with pytest.raises(SourceAnswerInvalid):
            row.rows("field")
    if not isinstance(value, dict):
        with pytest.raises(SourceAnswerInvalid):
            row.row("field")


def test_an_address_that_people_open_is_one_of_the_web() -> None:
    assert web_address("https://x.test/a") == "https://x.test/a"
    for bad in (
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///x",
        "https://[",
        "",
        "https://x/" + "a" * 5000,
    ):
        assert web_address(bad) == ""
