"""The child's answer is believed in nothing (E21): whatever bytes come, they decode or raise WireError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.extract.wire import (
    PAGE_NUMBER_MAX,
    PAGES_MAX,
    Extracted,
    ExtractedPage,
    Outcome,
    WireError,
    decode,
    encode,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
_PAGES = st.lists(st.builds(ExtractedPage, st.integers(0, PAGE_NUMBER_MAX), _TEXT), max_size=5)
_SAMPLE = encode(Extracted(Outcome.TEXT, True, "title", (ExtractedPage(1, "one"), ExtractedPage(2, "twö"))))


@given(markdown=st.booleans(), title=_TEXT, pages=_PAGES)
def test_what_is_encoded_decodes(markdown: bool, title: str, pages: list[ExtractedPage]) -> None:
    extracted = Extracted(Outcome.TEXT, markdown, title, tuple(pages))
    assert decode(encode(extracted)) == extracted


@given(raw=st.binary(max_size=300))
def test_garbage_raises_nothing_but_wire_error(raw: bytes) -> None:
    for candidate in (raw, b"SCX1" + raw, b"SCX1\0\0" + raw):
        with contextlib.suppress(WireError):
            decode(candidate)


def test_every_truncation_and_any_byte_more_is_refused() -> None:
    for size in range(len(_SAMPLE)):
        with pytest.raises(WireError):
            decode(_SAMPLE[:size])
    with pytest.raises(WireError):
        decode(_SAMPLE + b"\0")


def test_every_changed_byte_decodes_to_bounded_text_or_is_refused() -> None:
    for position in range(len(_SAMPLE)):
        for value in (0, 0x7F, 0xFF, _SAMPLE[position] ^ 1):
            raw = _SAMPLE[:position] + bytes([value]) + _SAMPLE[position + 1 :]
            try:
                extracted = decode(raw)
            except WireError:
                continue
            assert sum(len(page.text) for page in extracted.pages) <= len(raw)
            assert len(extracted.pages) <= PAGES_MAX


def test_text_that_is_not_utf8_and_pages_beyond_the_limits_are_refused() -> None:
    head = b"SCX1\0\0" + bytes(4)
    for body in (
        b"\0\0\0\1" + b"\0\0\0\1" + b"\0\0\0\2" + b"\xff\xfe",
        (PAGES_MAX + 1).to_bytes(4, "big"),
        b"\0\0\0\1" + (PAGE_NUMBER_MAX + 1).to_bytes(4, "big") + bytes(4),
        b"\0\0\0\1" + bytes(4) + b"\xff\xff\xff\xff",
    ):
        with pytest.raises(WireError):
            decode(head + body)


def test_a_refusal_carries_no_pages() -> None:
    raw = bytearray(_SAMPLE)
    raw[4] = Outcome.BROKEN.value
    with pytest.raises(WireError):
        decode(bytes(raw))
