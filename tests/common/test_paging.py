"""Page tokens belong to one account, listing and resource, and cannot be made up (D2's class)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import ids, paging
from services.common.errors import InvalidArgument
from services.common.sealing import DataKey

_KEY = DataKey(ids.new_id(), bytes(range(32)))


@given(st.binary(max_size=200))
def test_a_token_leads_back_to_its_position(position: bytes) -> None:
    token = paging.encode(_KEY, "a", "points", "r", position)
    assert paging.decode(_KEY, "a", "points", "r", token) == position


@pytest.mark.parametrize(
    "place", [("b", "points", "r"), ("a", "documents", "r"), ("a", "points", "s"), ("", "", "")]
)
def test_a_token_of_another_listing_is_refused(place: tuple[str, str, str]) -> None:
    token = paging.encode(_KEY, "a", "points", "r", b"position")
    with pytest.raises(InvalidArgument) as caught:
        paging.decode(_KEY, *place, token)
    assert caught.value.fields[0].field == "page_token"


@given(st.text(max_size=200))
def test_made_up_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        paging.decode(_KEY, "a", "points", "r", token)


def test_changed_and_oversized_tokens_are_refused() -> None:
    token = paging.encode(_KEY, "a", "points", "r", b"position")
    for at in range(len(token) - 1):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(InvalidArgument):
            paging.decode(_KEY, "a", "points", "r", changed)
    with pytest.raises(InvalidArgument):
        paging.decode(_KEY, "a", "points", "r", "A" * 10_000)


def test_a_token_shows_nothing_of_its_position() -> None:
    assert b"canary" not in paging.encode(_KEY, "a", "points", "r", b"canary").encode()


def test_page_sizes_have_a_default_and_a_bound() -> None:
    assert [paging.page_size(size) for size in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
