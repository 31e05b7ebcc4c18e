"""Who holds a collection: at most one replica, and whoever held it before cannot write."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from services.common import ids
from services.common.clock import SystemClock
from services.common.database import migrate, open_engine
from services.common.errors import NotFound, Unavailable
from services.vectorstore import editing
from services.vectorstore.catalog import Descriptor
from services.vectorstore.holders.store import Elsewhere, Held, HolderStore
from services.vectorstore.index import Metric
from services.vectorstore.leases import SharedLeases
from services.vectorstore.log import LostPlace
from services.vectorstore.operations import UpsertPoints
from services.vectorstore.schema import SnapshotRow
from services.vectorstore.store import Store
from tests.postgres import Postgres
from tests.vectorstore.fakes import ACCOUNT, OTHER, FakeClock, Space, acting, settle
from tests.vectorstore.replicas import Replicas
from tests.vectorstore.test_store import new

LIFE_US = 60_000_000


@dataclass
class Holders:
    """The tables, and a collection in them."""

    engine: sa.Engine
    store: HolderStore
    collection: str

    def end(self, replica: str) -> None:
        """Lets a replica's time be over."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("UPDATE replicas SET until_us = 1 WHERE id = :id"), {"id": replica})

    def replica(self, number: int) -> str:
        """A registered replica."""
        id_ = ids.new_id()
        self.store.register(id_, f"127.0.0.1:{number}", LIFE_US)
        return id_


@pytest.fixture(params=["sqlite", "postgresql"])
def holders(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holders]:
    """Empty tables with one collection, on each engine in turn."""
    url = f"sqlite:///{tmp_path}/vectorstore.db"
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.make_database(f"v{secrets.token_hex(6)}")
    engine = open_engine(url)
    migrate(engine, "services.vectorstore")
    made = new("one")
    Store(engine).add(made, 10)
    yield Holders(engine, HolderStore(engine), made.id)
    engine.dispose()


def test_one_replica_holds_and_the_others_learn_where(holders: Holders) -> None:
    one, two = holders.replica(1), holders.replica(2)
    assert holders.store.claim(ACCOUNT, holders.collection, one) == Held(2, gained=True)
    assert holders.store.claim(ACCOUNT, holders.collection, one) == Held(2, gained=False)
    assert holders.store.claim(ACCOUNT, holders.collection, two) == Elsewhere(one, "127.0.0.1:1")
    assert holders.store.is_held_by(holders.collection, one)
    assert not holders.store.is_held_by(holders.collection, two)
    assert holders.store.counts() == [("127.0.0.1:1", 1), ("127.0.0.1:2", 0)]
    assert holders.store.claim(OTHER, holders.collection, two) is None
    assert holders.store.claim(ACCOUNT, ids.new_id(), two) is None


def test_a_replica_whose_time_is_over_is_replaced_and_never_comes_back(holders: Holders) -> None:
    """F15, F19: it cannot move its time on after another has acted on its end."""
    one, two = holders.replica(1), holders.replica(2)
    holders.store.claim(ACCOUNT, holders.collection, one)
    holders.end(one)
    assert holders.store.claim(ACCOUNT, holders.collection, two) == Held(3, gained=True)
    assert not holders.store.renew(one, LIFE_US)
    with pytest.raises(Unavailable):
        holders.store.claim(ACCOUNT, ids_of(holders, "two"), one)
    assert holders.store.renew(two, LIFE_US)


def test_what_is_given_back_is_anyones_and_a_late_giving_back_takes_nothing(holders: Holders) -> None:
    one, two = holders.replica(1), holders.replica(2)
    holders.store.claim(ACCOUNT, holders.collection, one)
    holders.store.release([holders.collection], one)
    assert holders.store.claim(ACCOUNT, holders.collection, two) == Held(3, gained=True)
    holders.store.release([holders.collection], one)
    assert holders.store.is_held_by(holders.collection, two)


def test_a_replica_that_leaves_sends_to_those_that_stay_and_serves_alone(holders: Holders) -> None:
    one, two = holders.replica(1), holders.replica(2)
    holders.store.leave(one)
    assert holders.store.others(two) == []
    assert holders.store.claim(ACCOUNT, holders.collection, one) == Elsewhere(two, "127.0.0.1:2")
    holders.store.remove(two)
    assert holders.store.claim(ACCOUNT, holders.collection, one) == Held(2, gained=True)


def test_a_process_that_is_started_anew_at_its_address_need_not_wait_for_itself(holders: Holders) -> None:
    one = holders.replica(1)
    holders.store.claim(ACCOUNT, holders.collection, one)
    again = holders.replica(1)
    assert holders.store.claim(ACCOUNT, holders.collection, again) == Held(3, gained=True)
    assert not holders.store.renew(one, LIFE_US)


def test_of_many_that_claim_at_once_one_holds(holders: Holders) -> None:
    """F15: the row decides."""
    replicas = [holders.replica(number) for number in range(6)]
    gate = threading.Barrier(6)

    def claim(replica: str) -> bool:
        gate.wait()
        return isinstance(holders.store.claim(ACCOUNT, holders.collection, replica), Held)

    for _ in range(5):
        with ThreadPoolExecutor(6) as pool:
            won = [replica for replica, won in zip(replicas, pool.map(claim, replicas), strict=True) if won]
        assert len(won) == 1
        holders.store.release([holders.collection], won[0])


def test_f15_what_a_dead_replica_was_making_never_comes_to_be(holders: Holders) -> None:
    """F15, F18: what an import left is its maker's while that one lives; then it is refused, and removed."""
    store, makers = Store(holders.engine), [holders.replica(1), holders.replica(2)]
    made = [new("living's"), new("dead's")]
    for maker, one in zip(makers, made, strict=True):
        assert store.plan_snapshot(one.id, 0, SnapshotRow(1, f"a/{one.id}/snap-1-{maker}", one.key_id))
    assert store.orphans() == {one.id: maker for maker, one in zip(makers, made, strict=True)}
    holders.end(makers[1])
    assert [holders.store.is_over(maker) for maker in makers] == [False, True]
    assert not holders.store.renew(makers[1], LIFE_US)
    store.add(made[0], 10, makers[0])
    assert list(store.orphans()) == [made[1].id]
    if not store.is_local:
        with pytest.raises(Unavailable):
            store.add(made[1], 10, makers[1])
        assert store.by_id(ACCOUNT, made[1].id) is None


async def test_what_a_crash_left_of_an_import_is_removed_by_another_replica_and_not_before(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = [await replicas.start(lease_s=60.0) for _ in range(2)]

    async def crashes(*_arguments: object) -> None:
        raise RuntimeError("as if the process had ended")

    with acting():
        monkeypatch.setattr(one.node.catalog, "add", crashes)
        wanted = Descriptor("", "", "things", 2, Metric.COSINE, "", "", 0)
        unfinished = await one.node.importer.begin(wanted)
        unfinished.add(_points("a", "b"), [{}, {}])
        with pytest.raises(RuntimeError):
            await unfinished.finish()
    written = one.node._objects.list("")
    assert written
    await two.node.remove_abandoned()
    assert one.node._objects.list("") == written
    engine = open_engine(replicas.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE replicas SET until_us = 1 WHERE id = :id"), {"id": one.leases._id})
    engine.dispose()
    await two.node.remove_abandoned()
    assert one.node._objects.list("") == []
    assert two.node.store.orphans() == {}


async def test_a_replica_stops_believing_in_itself_before_the_database_does(holders: Holders) -> None:
    """F19: a process that was paused for longer than its lease answers nothing when it wakes."""
    clock = FakeClock()
    leases = SharedLeases(holders.store, ThreadPoolExecutor(1), clock, 60.0)
    await leases.start("127.0.0.1:1")
    try:
        # Whoever asked before it was held knows of the collection what was so before.
        both = await asyncio.gather(*(leases.claim(ACCOUNT, holders.collection) for _ in range(2)))
        assert both == [True, True]
        assert not await leases.claim(ACCOUNT, holders.collection)
        assert leases.epoch_of(holders.collection) == 2
        clock.s += 53
        assert leases.epoch_of(holders.collection) == 2
        clock.s += 2
        assert leases.epoch_of(holders.collection) is None
        with pytest.raises(Unavailable):
            await leases.claim(ACCOUNT, holders.collection)
        clock.s -= 2
        with pytest.raises(NotFound):
            await leases.claim(ACCOUNT, ids.new_id())
    finally:
        await leases.close()
    assert holders.store.counts() == []


async def test_a_replica_that_was_judged_dead_joins_anew_and_drops_what_it_held(holders: Holders) -> None:
    lost = threading.Event()
    leases = SharedLeases(holders.store, ThreadPoolExecutor(1), FakeClock(), 0.5)
    leases.on_lost = lost.set
    await leases.start("127.0.0.1:1")
    try:
        await leases.claim(ACCOUNT, holders.collection)
        with holders.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM replicas"))
        deadline = time.monotonic() + 30
        while not lost.is_set() or not holders.store.counts():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert leases.epoch_of(holders.collection) is None
        assert leases.held() == []
    finally:
        await leases.close()


async def test_renewing_goes_on_after_an_error_that_nobody_expected(
    holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = SharedLeases(holders.store, ThreadPoolExecutor(1), SystemClock(), 0.5)
    true, failures = holders.store.renew, [2]

    def renew(replica: str, life_us: int) -> bool:
        if failures[0]:
            failures[0] -= 1
            raise RuntimeError("never seen before")
        return true(replica, life_us)

    monkeypatch.setattr(holders.store, "renew", renew)
    await leases.start("127.0.0.1:1")
    try:
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.7)
            # Long after the time that it had from its start.
            try:
                await leases.claim(ACCOUNT, holders.collection)
                break
            except Unavailable:
                assert leases.epoch_of(holders.collection) is None
        assert failures == [0]
    finally:
        await leases.close()


async def test_f15_a_holder_that_was_replaced_writes_nothing(replicas: Replicas) -> None:
    """F15: round after round the holder's time ends unnoticed, another takes over and writes, the first
    goes on with what it had in its hands: 0 stale writes. The twin writes as the holder of the day.
    """
    # Long, so that no renewing finds a replica gone in the middle of a round.
    nodes = [(await replicas.start(lease_s=600.0)) for _ in range(2)]
    spaces = [Space(replica.node) for replica in nodes]
    await spaces[0].make(dimension=2)
    engine = open_engine(replicas.url)
    accepted = 0
    for number in range(60):
        old, now = spaces[number % 2], spaces[(number + 1) % 2]
        stale = await old.use()
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE replicas SET until_us = 1 WHERE id = :id"),
                {"id": nodes[number % 2].leases._id},
            )
        nodes[(number + 1) % 2].leases.forget_where(stale.descriptor.id)
        await now.upsert({f"p{number}": [1, number]})
        with pytest.raises(LostPlace):
            await editing.upsert(stale, _points(f"stale{number}"), [{}])
        # The paused one wakes, finds itself gone and joins anew, as its renewing thread would.
        nodes[number % 2].leases._register()
        nodes[number % 2].leases._forget()
        accepted += 1
    engine.dispose()
    assert sorted(await now.contents()) == sorted(f"p{number}" for number in range(accepted))


async def test_f15_a_holder_that_wakes_in_a_snapshot_leaves_no_object_that_nobody_knows(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: paused after its notes, replaced, and woken once its successor has removed what was noted."""
    one, two = [await replicas.start(lease_s=60.0) for _ in range(2)]
    late, now = Space(one.node), Space(two.node)
    await late.make(dimension=2)
    await late.upsert({"a": [1, 1]})
    use = await late.use()
    keeper = use.collection.on_applied.__self__  # type: ignore[attr-defined]
    keeper.start(use.key)
    engine, loop, put = open_engine(replicas.url), asyncio.get_running_loop(), one.node._objects.put

    async def taken_over() -> None:
        two.leases.forget_where(use.descriptor.id)
        await now.upsert({"b": [1, 2]})
        await settle((await now.use()).collection)

    def pausing(key: str, parts: Iterable[bytes]) -> None:
        monkeypatch.setattr(one.node._objects, "put", put)
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM replicas WHERE id = :id"), {"id": one.leases._id})
        asyncio.run_coroutine_threadsafe(taken_over(), loop).result(60)
        assert two.node.store.parts(use.descriptor.id) == []
        put(key, parts)

    monkeypatch.setattr(one.node._objects, "put", pausing)
    with pytest.raises(LostPlace):
        await keeper.snapshot()
    engine.dispose()
    assert one.node._objects.list("") == []
    assert sorted(await now.contents()) == ["a", "b"]


def ids_of(holders: Holders, name: str) -> str:
    """One more collection."""
    made = new(name)
    Store(holders.engine).add(made, 10)
    return made.id


def _points(*names: str) -> UpsertPoints:
    return UpsertPoints(
        list(names), np.ones((len(names), 2), np.float32), [b""] * len(names), [""] * len(names)
    )
