"""Ids: one spelling for 128 bits, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import ids


@given(st.binary(min_size=16, max_size=16))
def test_bytes_and_text_are_one_to_one(raw: bytes) -> None:
    text = ids.from_bytes(raw)
    assert ids.is_id(text)
    assert ids.to_bytes(text) == raw


@given(st.text(alphabet="0123456789abcdefghjkmnpqrstvwxyzilouAZ-\n", max_size=30))
def test_every_text_that_passes_is_the_spelling_of_its_bytes(text: str) -> None:
    if ids.is_id(text):
        assert ids.from_bytes(ids.to_bytes(text)) == text
    else:
        with pytest.raises(ValueError, match="not an id"):
            ids.to_bytes(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 25,
        "0" * 27,
        "8" + "0" * 25,
        "z" * 26,
        "0" * 25 + "i",
        "0" * 25 + "A",
        "0" * 26 + "\n",
        "\u0660" * 26,
    ],
)
def test_near_misses_are_no_ids(text: str) -> None:
    assert not ids.is_id(text)


def test_new_ids_differ() -> None:
    assert len({ids.new_id() for _ in range(10_000)}) == 10_000
    with pytest.raises(ValueError, match="16 bytes"):
        ids.from_bytes(bytes(15))
