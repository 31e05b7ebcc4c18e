"""Two policy processes over one store: what one changes, the other obeys in time (B5)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import SealcombError
from services.gateway.changes.feed import BOUND_S, POLL_S, ChangeFeed
from services.gateway.changes.store import Changes
from services.gateway.limits import LimitChange
from tests.gateway.fakes import ADMIN_METHOD, OPERATOR_METHOD, Policy, acting

READ = "/sealcomb.v1.VectorService/Query"


class Pair:
    """Two processes: what is done on `here` must reach `there`, by its feed alone."""

    def __init__(self, folder: Path) -> None:
        self.here = Policy(folder)
        self.there = Policy(folder, seed=1_000_000)
        self.there.clock = self.here.clock
        for part in (self.there.sessions, self.there.authorizer, self.there.mint):
            part._clock = self.here.clock
        self.feed = ChangeFeed(self.there.store.change_log(), self.there.sessions, self.here.clock)

    def reason(self, token: str) -> str:
        """Why the other process refuses a token; empty if it does not."""
        try:
            self.there.admit(READ, token)
        except SealcombError as error:
            return error.reason
        return ""


@pytest.fixture
async def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path)
    await made.feed.read()
    return made


async def test_a_revocation_elsewhere_is_obeyed_from_the_next_reading_on(pair: Pair) -> None:
    """B5."""
    account, token = await pair.here.new_account()
    assert pair.reason(token) == ""
    with acting(ADMIN_METHOD, account):
        await pair.here.issuer.revoke(token.split("_")[2])
    await pair.feed.read()
    assert pair.reason(token) == "TOKEN_REVOKED"


async def test_suspension_deletion_and_limits_elsewhere_are_obeyed_too(pair: Pair) -> None:
    """B5, B16."""
    account, token = await pair.here.new_account()
    for change, expected in (
        (pair.here.accounts.update(account, LimitChange(), True), "ACCOUNT_SUSPENDED"),
        (pair.here.accounts.update(account, LimitChange(1.0, 1), False), ""),
        (pair.here.accounts.delete(account, account), "TOKEN_INVALID"),
    ):
        with acting(OPERATOR_METHOD):
            await change
        await pair.feed.read()
        assert pair.reason(token) == expected
    _, other = await pair.here.new_account()
    assert pair.reason(other) == ""


async def test_without_a_reading_nothing_held_is_believed_longer_than_the_bound(pair: Pair) -> None:
    """B5: the process that no push reaches, and whose polls fail too, but that can read a row."""
    account, token = await pair.here.new_account()
    assert pair.reason(token) == ""
    with acting(ADMIN_METHOD, account):
        await pair.here.issuer.revoke(token.split("_")[2])
    pair.here.clock.pass_s(BOUND_S - 0.01)
    assert pair.reason(token) == ""
    pair.here.clock.pass_s(0.01)
    assert pair.reason(token) == "TOKEN_REVOKED"


async def test_without_the_bound_a_revoked_token_would_go_on(pair: Pair) -> None:
    """The twin of the test above: past five seconds."""
    account, token = await pair.here.new_account()
    pair.there.sessions.believe_until(math.inf)
    assert pair.reason(token) == ""
    with acting(ADMIN_METHOD, account):
        await pair.here.issuer.revoke(token.split("_")[2])
    pair.here.clock.pass_s(6.0)
    assert pair.reason(token) == ""


async def test_who_has_lost_the_database_refuses_within_the_bound(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: fails closed, and is back as soon as the database is."""
    _, token = await pair.here.new_account()
    assert pair.reason(token) == ""

    def lost(*_arguments: object) -> None:
        raise ConnectionError("no route to the database")

    with monkeypatch.context() as patch:
        patch.setattr(pair.there.store, "token", lost)
        patch.setattr(type(pair.feed._log), "since", lost)
        await pair.feed.read()
        assert pair.reason(token) == ""
        pair.here.clock.pass_s(BOUND_S)
        with pytest.raises(ConnectionError):
            pair.reason(token)
    await pair.feed.read()
    assert pair.reason(token) == ""


class SlowLog:
    """A log whose reading takes as long as a test wants."""

    pushes = False

    def __init__(self) -> None:
        self.changes = Changes(1, (), False)

    def position(self) -> int:
        return 0

    def since(self, position: int) -> Changes:
        return self.changes

    async def wakeups(self):  # type: ignore[no-untyped-def]
        yield


async def test_a_reading_proves_from_when_it_began_and_only_one_is_under_way(pair: Pair) -> None:
    started: list[asyncio.Future[Changes]] = []

    def run(read: Callable[[], Changes]) -> asyncio.Future[Changes]:
        started.append(asyncio.get_running_loop().create_future())
        return started[-1]

    clock = pair.here.clock
    feed = ChangeFeed(SlowLog(), pair.there.sessions, clock, run)
    began_s = clock.monotonic_s()
    for _ in range(3):
        await feed.read(0.001)
        clock.pass_s(1.0)
    assert len(started) == 1
    started[0].set_result(Changes(7, (), False))
    await feed.read()
    assert pair.there.sessions._believed_until_s == began_s + BOUND_S
    assert feed._position == 7


@pytest.mark.parametrize("turns", range(6))
async def test_who_is_told_to_stop_in_the_moment_of_a_push_stops(pair: Pair, turns: int) -> None:
    """A process whose feed went on never ended."""

    async def run(read: Callable[[], Changes]) -> Changes:
        return read()

    feed = ChangeFeed(SlowLog(), pair.there.sessions, pair.here.clock, run)
    following = asyncio.create_task(feed.follow())
    for _ in range(20):
        await asyncio.sleep(0)
    feed._wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    following.cancel()
    done, _ = await asyncio.wait({following}, timeout=5)
    assert done


async def test_lost_changes_mean_that_anything_may_have_changed(pair: Pair) -> None:
    _, token = await pair.here.new_account()
    assert pair.reason(token) == ""
    assert len(pair.there.sessions._held) == 1

    async def run(read: Callable[[], Changes]) -> Changes:
        return Changes(9, (), lost=True)

    await ChangeFeed(SlowLog(), pair.there.sessions, pair.here.clock, run).read()
    assert not pair.there.sessions._held


def test_the_bounds_leave_room_below_what_is_promised() -> None:
    """B5: five seconds without the push, a second by polling alone."""
    assert BOUND_S < 5.0
    assert POLL_S <= 0.5
