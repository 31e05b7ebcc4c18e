"""The cache of data keys: no other account's, none beyond its time, gone on command (D12, D14, D15)."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import datakeys, ids
from services.common.context import CallContext, Caller, ContextRefused, acting_as, current_caller
from services.common.datakeys import DataKeys
from services.common.errors import PermissionDenied, Unavailable
from services.common.sealing import DataKey


class _Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s


class _Keyvault:
    """A key source that makes a key for each place, and may be slow, down or refusing."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str, str], DataKey] = {}
        self.asked: list[tuple[str, str, str, str]] = []
        self.was_asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.refused_text = ""

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        caller = current_caller()
        account = caller.context.account
        self.asked.append((account, resource, purpose, key_id))
        self.was_asked.set()
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if caller.text == self.refused_text:
            raise PermissionDenied("this permit has ended")
        place = (account, resource, purpose)
        if place not in self.keys:
            self.keys[place] = DataKey(ids.new_id(), (repr(place) * 32).encode()[:32])
        return self.keys[place]


def _as(account: str, text: str = "context") -> AbstractContextManager[None]:
    context = CallContext("gateway", (), account, "t", (), (), "/s/M", 0.0, 30.0, "r")
    return acting_as(Caller(context, text))


async def _until_asked(keyvault: _Keyvault) -> None:
    await asyncio.wait_for(keyvault.was_asked.wait(), 5)


@pytest.fixture
async def keyvault() -> _Keyvault:
    """A key source."""
    return _Keyvault()


@pytest.fixture
def clock() -> _Clock:
    """A clock that moves by hand."""
    return _Clock()


@pytest.fixture
def keys(keyvault: _Keyvault, clock: _Clock) -> DataKeys:
    """The cache under test, one minute of life."""
    return DataKeys(keyvault, clock, 60.0)


async def test_a_key_is_asked_for_once_in_its_time(
    keys: DataKeys, keyvault: _Keyvault, clock: _Clock
) -> None:
    with _as("a"):
        key = await keys.current("r", "p")
        assert await keys.current("r", "p") is key
        assert await keys.by_id("r", "p", key.id) is key
        assert len(keyvault.asked) == 1
        clock.time_s = 59.9
        await keys.current("r", "p")
        assert len(keyvault.asked) == 1


@pytest.mark.parametrize("late_s", [60.0, 61.0, 1e9])
async def test_no_key_is_used_beyond_its_time(
    keys: DataKeys, keyvault: _Keyvault, clock: _Clock, late_s: float
) -> None:
    """D14: the hard bound of the off switch; D12: a keyvault that is down never means an old key."""
    with _as("a"):
        key = await keys.current("r", "p")
        keyvault.error = Unavailable("down")
        assert await keys.current("r", "p") is key
        clock.time_s = late_s
        with pytest.raises(Unavailable):
            await keys.current("r", "p")
        with pytest.raises(Unavailable):
            await keys.by_id("r", "p", key.id)


async def test_an_old_key_is_used_once_time_has_no_bound(keyvault: _Keyvault, clock: _Clock) -> None:
    """D14's twin: without a time to live the key outlives the off switch."""
    keys = DataKeys(keyvault, clock, float("inf"))
    with _as("a"):
        key = await keys.current("r", "p")
        keyvault.error = Unavailable("down")
        clock.time_s = 1e9
        assert await keys.current("r", "p") is key


async def test_the_time_counts_from_before_the_release(
    keys: DataKeys, keyvault: _Keyvault, clock: _Clock
) -> None:
    keyvault.open.clear()
    with _as("a"):
        waiting = asyncio.create_task(keys.current("r", "p"))
        await _until_asked(keyvault)
        clock.time_s = 9.0
        keyvault.open.set()
        await waiting
        clock.time_s = 60.0
        await keys.current("r", "p")
    assert len(keyvault.asked) == 2


@given(
    st.lists(
        st.tuples(*(st.sampled_from(["x", "y", "xy", ""]) for _ in range(3))),
        min_size=2,
        max_size=6,
        unique=True,
    )
)
async def test_no_two_places_share_a_key(places: list[tuple[str, str, str]]) -> None:
    """D15: equal resources and purposes of other accounts included."""
    keyvault = _Keyvault()
    keys = DataKeys(keyvault, _Clock())
    found = []
    for account, resource, purpose in places:
        with _as(account or "nobody"):
            found.append((await keys.current(resource, purpose)).id)
    assert len(set(found)) == len({(account or "nobody", r, p) for account, r, p in places})


async def test_another_account_never_gets_a_held_key(keys: DataKeys, keyvault: _Keyvault) -> None:
    """D15, D1: not even by the key's own id."""
    with _as("a"):
        key = await keys.current("r", "p")
    keyvault.error = PermissionDenied("no")
    with _as("b"):
        for attempt in (keys.current("r", "p"), keys.by_id("r", "p", key.id)):
            with pytest.raises(PermissionDenied):
                await attempt
    with pytest.raises(ContextRefused):
        await keys.current("r", "p")


async def test_another_account_gets_the_key_once_accounts_are_not_told_apart(
    keys: DataKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15's twin: with the account left out of the place, b is given a's key."""
    monkeypatch.setattr(datakeys, "current_account", lambda: "")
    with _as("a"):
        key = await keys.current("r", "p")
    with _as("b"):
        assert await keys.current("r", "p") is key


async def test_dropped_keys_are_asked_for_again(keys: DataKeys, keyvault: _Keyvault) -> None:
    """D14: what the events of keyvault call."""
    for drop in (
        lambda: keys.drop_account("a"),
        lambda: keys.drop_resource("a", "r"),
        lambda: keys.drop_all(),
    ):
        with _as("a"):
            await keys.current("r", "p")
        keyvault.asked.clear()
        drop()
        with _as("a"):
            await keys.current("r", "p")
        assert len(keyvault.asked) == 1


async def test_dropping_one_leaves_the_others(keys: DataKeys, keyvault: _Keyvault) -> None:
    for account in ("a", "b"):
        with _as(account):
            await keys.current("r", "p")
            await keys.current("s", "p")
    keyvault.asked.clear()
    keys.drop_resource("a", "r")
    for account in ("a", "b"):
        with _as(account):
            await keys.current("r", "p")
            await keys.current("s", "p")
    assert keyvault.asked == [("a", "r", "p", "")]


async def test_a_key_that_arrives_after_a_drop_is_not_kept(keys: DataKeys, keyvault: _Keyvault) -> None:
    keyvault.open.clear()
    with _as("a"):
        waiting = asyncio.create_task(keys.current("r", "p"))
        await _until_asked(keyvault)
        keys.drop_account("a")
        keyvault.open.set()
        await waiting
        await keys.current("r", "p")
    assert len(keyvault.asked) == 2


async def test_many_at_once_are_one_request(keys: DataKeys, keyvault: _Keyvault) -> None:
    """D12: one flight, whoever gives up meanwhile."""
    keyvault.open.clear()
    with _as("a"):
        waiting = [asyncio.create_task(keys.current("r", "p")) for _ in range(50)]
        await _until_asked(keyvault)
        waiting[0].cancel()
        await asyncio.sleep(0)
        keyvault.open.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert len({result.id for result in results[1:] if isinstance(result, DataKey)}) == 1
    assert len(keyvault.asked) == 1


async def test_one_callers_refusal_is_not_anothers(keys: DataKeys, keyvault: _Keyvault) -> None:
    """A permit that has ended, or a context that expires on its way, fails itself alone."""
    keyvault.open.clear()
    keyvault.refused_text = "ended permit"
    with _as("a", "ended permit"):
        refused = asyncio.create_task(keys.current("r", "p"))
    with _as("a", "good context"):
        served = asyncio.create_task(keys.current("r", "p"))
    await _until_asked(keyvault)
    keyvault.open.set()
    with pytest.raises(PermissionDenied):
        await refused
    assert (await served).id


async def test_errors_are_not_kept(keys: DataKeys, keyvault: _Keyvault) -> None:
    keyvault.error = Unavailable("down")
    with _as("a"):
        with pytest.raises(Unavailable):
            await keys.current("r", "p")
        keyvault.error = None
        await keys.current("r", "p")


async def test_memory_is_bounded_in_number_and_in_time(
    keys: DataKeys, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datakeys, "_ENTRIES_MAX", 10)
    with _as("a"):
        for number in range(50):
            await keys.current(f"r{number}", "p")
        assert len(keys._held) == 10
        clock.time_s = 61.0
        await keys.current("fresh", "p")
    # What nobody asks for again does not stay beyond its time.
    assert {slot[1] for slot in keys._held} == {"fresh"}
