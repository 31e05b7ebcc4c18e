"""The off switch: a disabled key stops the account's data within a second, an enabled one brings it back."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from sealcomb_client import ApiError
from sealcomb_client.content import point
from tests.system.installation import Account, Installation


@pytest.fixture
def busy(installation: Installation) -> Account:
    """An account whose data is in use, so that every cache holds it."""
    account = installation.new_account()
    account.client.collections.create("texts", embedder="default")
    account.client.documents.upload("texts", b"The drones are driven out in August.", name="drones.txt")
    account.client.collections.create("vectors", dimension=2)
    account.client.points.upsert("vectors", [point("a", [1, 0])])
    for _ in range(3):
        assert account.client.search("texts", "what happens to drones?")
        assert account.client.points.query("vectors", [1, 0])
    return account


def refusal(account: Account, call: str) -> str:
    """The reason why a call fails now; empty if it works."""
    client = account.client
    calls = {
        "search": lambda: client.search("texts", "what happens to drones?"),
        "lexical search": lambda: client.search("texts", "drones", mode="lexical"),
        "query": lambda: client.points.query("vectors", [1, 0]),
        "get points": lambda: client.points.get("vectors", ["a"]),
        "list documents": lambda: list(client.documents.list("texts")),
        "list collections": lambda: list(client.collections.list()),
        "upload": lambda: client.documents.upload("texts", b"More about drones.", name="more.txt"),
        "upsert": lambda: client.points.upsert("vectors", [point("b", [0, 1])]),
    }
    try:
        calls[call]()
    except ApiError as error:
        return error.reason
    return ""


CALLS = (
    "search",
    "lexical search",
    "query",
    "get points",
    "list documents",
    "list collections",
    "upload",
    "upsert",
)


def test_a_disabled_key_stops_all_calls_within_a_second_and_an_enabled_one_brings_them_back(
    busy: Account,
) -> None:
    """D14: disable stops access, whatever was cached before."""
    disabled_at = time.monotonic()
    busy.client.keys.disable()
    while refusal(busy, "search") != "KEY_DISABLED":
        assert time.monotonic() - disabled_at < 1.0, "a search still worked after a second"
    # The others shared the second with the search.
    time.sleep(max(0.0, disabled_at + 1.0 - time.monotonic()))
    assert {call: refusal(busy, call) for call in CALLS} == dict.fromkeys(CALLS, "KEY_DISABLED")
    busy.client.keys.enable()
    # A call that only asks the caches may see the old state for the time of one event.
    deadline = time.monotonic() + 1.0
    while refusal(busy, "search") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert {call: refusal(busy, call) for call in CALLS} == dict.fromkeys(CALLS, "")
    assert "drones.txt" in {
        hit.document_name for hit in busy.client.search("texts", "what happens to drones?")
    }


def test_without_the_switch_the_same_calls_go_on(busy: Account) -> None:
    """The twin: what the test above sees stop does not stop by itself."""
    time.sleep(1.0)
    assert {call: refusal(busy, call) for call in CALLS} == dict.fromkeys(CALLS, "")


def test_a_suspended_account_is_refused_at_once_and_a_resumed_one_works(
    installation: Installation, busy: Account
) -> None:
    """B16: suspension stops an account's tokens."""
    operator = installation.client()
    operator.accounts.update(busy.id, suspended=True)
    assert refusal(busy, "search") != ""
    operator.accounts.update(busy.id, suspended=False)
    assert refusal(busy, "search") == ""


def test_a_revoked_token_is_refused_at_once(installation: Installation, busy: Account) -> None:
    made = busy.client.tokens.create("short", ["read"])
    other = installation.client(replace(busy.connection, token=made.token))
    assert other.search("texts", "drones")
    busy.client.tokens.revoke(made.info.id)
    with pytest.raises(ApiError) as caught:
        other.search("texts", "drones")
    assert caught.value.code == "UNAUTHENTICATED"


def test_a_rotated_key_opens_what_was_sealed_before(busy: Account) -> None:
    """D20: rotation re-wraps and loses nothing."""
    version = busy.client.keys.get().version
    assert busy.client.keys.rotate().version == version + 1
    assert busy.client.search("texts", "what happens to drones?")[0].document_name == "drones.txt"


def test_a_deleted_account_is_gone_for_its_tokens(installation: Installation, busy: Account) -> None:
    operator = installation.client()
    with pytest.raises(ApiError) as wrong:
        operator.accounts.delete(busy.id, confirm="something else")
    assert wrong.value.code == "INVALID_ARGUMENT"
    operator.accounts.delete(busy.id, confirm=busy.id)
    assert refusal(busy, "search") != ""
    with pytest.raises(ApiError) as caught:
        operator.accounts.get(busy.id)
    assert caught.value.code == "NOT_FOUND"
