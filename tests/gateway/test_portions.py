"""Limits that several policy processes share: rows B8 and B9 of the threat table, and G10 of their store."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.clock import SystemClock
from services.gateway.buckets import ASK, Limits
from services.gateway.config import GatewaySettings
from services.gateway.portions.buckets import SharedBuckets
from services.gateway.portions.lease import Lease, StoreLost
from services.gateway.portions.store import Address, PortionStore
from services.standalone.pki import ensure_installation
from tests.gateway.fakes import FakeClock
from tests.tcp_proxy import running_proxy
from tests.valkey_server import ValkeyServer, running_valkey

_Result = TypeVar("_Result")


@dataclass
class FakeStore:
    """The store in memory, by a fake clock; the same arithmetic as the script's."""

    clock: FakeClock
    lost: bool = False
    leases: int = 0
    levels: dict[str, tuple[float, float]] = field(default_factory=dict)
    replicas: set[str] = field(default_factory=set)
    closed: bool = False

    async def lease(
        self, name: str, limits: Limits, first: float, must: float, ahead: float, owed: float = 0.0
    ) -> Lease:
        await asyncio.sleep(0)
        if self.lost:
            raise StoreLost
        self.leases += 1
        now_s = self.clock.monotonic_s()
        level, at = self.levels.get(name, (float(limits.burst), now_s))
        level = min(float(limits.burst), level + max(0.0, now_s - at) * limits.calls_per_second) - owed
        granted = 0.0
        if level + 1e-6 >= must:
            granted = min(level, must + min(ahead, math.floor((level - must) / 8)))
        elif level + 1e-6 >= first:
            granted = min(level, math.floor((level + 1e-6) / first) * first)
        level -= granted
        self.levels[name] = (level, max(now_s, at))
        return Lease(granted, level, 0.0 if granted >= must else (first - level) / limits.calls_per_second)

    async def give_back(self, name: str, amount: float) -> None:
        if self.lost:
            raise StoreLost
        level, at = self.levels[name]
        self.levels[name] = (level + amount, at)

    async def beat(self, replica: str) -> int:
        if self.lost:
            raise StoreLost
        self.replicas.add(replica)
        return len(self.replicas)

    async def close(self) -> None:
        self.closed = True


class Replica:
    """One process's side of it."""

    def __init__(self, store: Any, clock: Any, name: str) -> None:
        self.clock = clock
        self.pool = SharedBuckets(store, clock, name)

    async def admits(self, limits: Limits, cost: float = 1.0, name: str = "account") -> bool:
        """Whether a call is let in, as the authorizer decides it."""
        bucket = self.pool.bucket(name, limits)
        for _ in range(20):
            wait_s = bucket.wait_s(cost, self.clock.monotonic_s())
            if wait_s == 0:
                bucket.take(cost)
                return True
            if wait_s > 0:
                return False
            await bucket.ask(cost)
        raise AssertionError("it was asked again and again")


async def pair(count: int = 2) -> tuple[FakeClock, FakeStore, list[Replica]]:
    clock = FakeClock()
    store = FakeStore(clock)
    replicas = [Replica(store, clock, f"r{number}") for number in range(count)]
    for _ in range(2):
        for replica in replicas:
            await replica.pool.beat()
    return clock, store, replicas


async def test_processes_share_one_limit_to_the_last_call() -> None:
    """B8."""
    clock, _, replicas = await pair(4)
    limits = Limits(100.0, 200)
    admitted = 0
    for _ in range(100):
        clock.pass_s(0.05)
        for replica in replicas:
            admitted += sum([await replica.admits(limits) for _ in range(5)])
    assert 0.98 * 700 <= admitted <= 700


async def test_a_bucket_for_each_process_would_let_four_times_as_much_through() -> None:
    """The twin of the test above."""
    clock = FakeClock()
    replicas = [Replica(FakeStore(clock), clock, f"r{number}") for number in range(4)]
    limits = Limits(1.0, 20)
    assert sum([await replica.admits(limits) for replica in replicas for _ in range(50)]) == 80


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([1.0, 2.0, 5.0]), st.floats(0, 0.3)),
        min_size=1,
        max_size=120,
    ),
    st.sampled_from([Limits(5.0, 10), Limits(50.0, 30), Limits(0.5, 1)]),
)
def test_whatever_happens_no_more_is_admitted_than_the_limit(
    calls: list[tuple[int, float, float]], limits: Limits
) -> None:
    """B8: any order of calls, costs and pauses."""

    async def run() -> None:
        clock, _, replicas = await pair(4)
        began_s, admitted = clock.monotonic_s(), 0.0
        for number, cost, pause_s in calls:
            clock.pass_s(pause_s)
            if await replicas[number].admits(limits, cost):
                admitted += min(cost, limits.burst)
            bound = limits.burst + (clock.monotonic_s() - began_s) * limits.calls_per_second
            assert admitted <= bound + 1e-3

    asyncio.run(run())


async def test_a_refused_call_that_waits_as_told_is_admitted() -> None:
    clock, _, (replica, _) = await pair()
    limits = Limits(3.0, 2)
    for cost in (1.0, 2.0):
        while await replica.admits(limits, cost):
            pass
        bucket = replica.pool.bucket("account", limits)
        clock.pass_s(bucket.wait_s(cost, clock.monotonic_s()))
        assert await replica.admits(limits, cost)


async def test_a_busy_account_asks_seldom_and_a_refused_one_not_at_all() -> None:
    clock, store, (replica, _) = await pair()
    limits = Limits(1000.0, 1000)
    for _ in range(1000):
        clock.pass_s(0.001)
        assert await replica.admits(limits)
        # What is asked ahead comes while the next call is awaited.
        await asyncio.sleep(0)
    assert store.leases < 100
    while await replica.admits(limits):
        pass
    before = store.leases
    for _ in range(100):
        assert not await replica.admits(limits)
    assert store.leases == before


async def test_calls_that_wait_together_ask_together() -> None:
    _, store, (replica, _) = await pair()
    outcomes = await asyncio.gather(*(replica.admits(Limits(1.0, 30)) for _ in range(100)))
    assert sum(outcomes) == 30
    assert store.leases <= 3


async def test_new_limits_hold_at_once() -> None:
    clock, _, (replica, _) = await pair()
    assert await replica.admits(Limits(1000.0, 1000))
    assert [await replica.admits(Limits(1.0, 1)) for _ in range(3)] == [True, False, False]
    assert await replica.admits(Limits(1000.0, 1000)) is False
    clock.pass_s(0.01)
    assert await replica.admits(Limits(1000.0, 1000))


async def test_what_nobody_uses_is_given_back() -> None:
    clock, store, (busy, other) = await pair()
    limits = Limits(1000.0, 1000)
    for _ in range(300):
        clock.pass_s(0.001)
        await busy.admits(limits)
        await asyncio.sleep(0)
    bucket = busy.pool.bucket("account", limits)
    assert bucket.portion > 1
    for _ in range(2):
        await busy.pool.tidy()
    assert bucket.portion == 0
    level = store.levels["account"][0]
    assert sum([await other.admits(limits) for _ in range(1100)]) >= int(level)


async def test_without_the_store_each_process_keeps_to_its_share() -> None:
    """B9: what all of them let in is what the limit allows, however long it lasts."""
    clock, store, replicas = await pair(4)
    limits = Limits(100.0, 80)
    assert sum([await replica.admits(limits) for replica in replicas for _ in range(5)]) == 20
    store.lost = True
    admitted, began_s = 0, clock.monotonic_s()
    for _ in range(200):
        clock.pass_s(0.01)
        for replica in replicas:
            admitted += sum([await replica.admits(limits) for _ in range(3)])
    passed_s = clock.monotonic_s() - began_s
    ceiling = 80 + 100 * passed_s
    assert 0.9 * 100 * passed_s <= admitted <= ceiling
    assert all(replica.pool.lost for replica in replicas)


async def test_failing_open_would_let_everything_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above."""
    _, store, (replica, _) = await pair()
    store.lost = True
    monkeypatch.setattr(SharedBuckets, "share_of", lambda self, limits: Limits(1e12, 1_000_000_000))
    bucket = replica.pool.bucket("account", Limits(1.0, 1))
    bucket._level = math.inf
    assert sum([await replica.admits(Limits(1.0, 1)) for _ in range(1000)]) == 1000


async def test_losing_the_store_again_and_again_gives_nothing() -> None:
    """B9: each loss begins with no more than was left."""
    clock, store, (replica, other) = await pair()
    limits = Limits(10.0, 100)
    admitted, began_s = 0, clock.monotonic_s()
    for _ in range(50):
        for lost in (False, True):
            store.lost = lost
            for one in (replica, other):
                await one.pool.beat()
                while await one.admits(limits):
                    admitted += 1
        clock.pass_s(0.1)
    assert admitted <= (100 + 10 * (clock.monotonic_s() - began_s)) * 1.05


class CutOff:
    """The way of one process to a store that the others reach."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        if self.is_cut:
            raise StoreLost
        return getattr(self.store, name)


async def test_what_a_process_let_in_while_it_was_cut_off_is_taken_from_the_store_afterwards() -> None:
    """B8: the store has granted the same calls to the others meanwhile."""
    clock, store, others = await pair(3)
    way = CutOff(store)
    cut = Replica(way, clock, "cut")
    for one in (cut, *others):
        await one.pool.beat()
    limits = Limits(40.0, 80)
    admitted, began_s = 0, clock.monotonic_s()
    for step in range(100):
        # Lost for half a second, and again a while later.
        way.is_cut = step % 40 < 10
        if step % 10 == 0:
            await cut.pool.beat()
        for one in (cut, *others):
            admitted += sum([await one.admits(limits) for _ in range(25)])
        clock.pass_s(0.05)
    allowed = 80 + 40 * (clock.monotonic_s() - began_s)
    assert cut.pool.losses == 3
    assert 0.98 * allowed <= admitted <= 1.01 * allowed


async def test_a_loss_long_ago_is_not_paid_for() -> None:
    clock, store, (replica, _) = await pair()
    limits = Limits(10.0, 20)
    store.lost = True
    for _ in range(100):
        clock.pass_s(1)
        while await replica.admits(limits):
            pass
    store.lost = False
    await replica.pool.beat()
    clock.pass_s(4)
    assert sum([await replica.admits(limits) for _ in range(30)]) == 20


async def test_the_store_that_answers_again_is_believed_again() -> None:
    clock, store, (replica, _) = await pair()
    limits = Limits(1.0, 4)
    store.lost = True
    assert [await replica.admits(limits) for _ in range(3)] == [True, True, False]
    store.lost = False
    await replica.pool.beat()
    assert sum([await replica.admits(limits) for _ in range(9)]) == 2
    assert clock.monotonic_s() == 1000.0


@pytest.mark.parametrize("lost", [False, True])
async def test_at_the_end_everything_is_given_back_and_the_store_is_left(lost: bool) -> None:
    _, store, (replica, _) = await pair()
    assert await replica.admits(Limits(1.0, 10))
    (bucket,) = replica.pool._buckets.values()
    bucket.portion, (before, _) = 2.0, store.levels["account"]
    store.lost = lost
    await replica.pool.close()
    assert store.closed
    assert store.levels["account"][0] == before + (0 if lost else 2)


async def test_buckets_of_accounts_that_are_gone_take_no_memory() -> None:
    """B10."""
    clock, _, (replica, _) = await pair()
    for number in range(6000):
        replica.pool.bucket(f"account {number}", Limits(1.0, 1))
    clock.pass_s(61)
    replica.pool.bucket("one", Limits(1.0, 1))
    await replica.pool.tidy()
    assert len(replica.pool._buckets) == 1


# --- the real store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
async def store(server: ValkeyServer) -> AsyncIterator[PortionStore]:
    opened = PortionStore(Address("127.0.0.1", server.port, tls=False))
    await opened._client.flushall()
    yield opened
    await opened.close()


async def test_the_script_leases_what_is_there_and_says_when_more_is(store: PortionStore) -> None:
    """B8."""
    slow = Limits(0.001, 10)
    assert await store.lease("a", slow, 1, 1, 0) == Lease(1.0, 9.0, 0.0)
    ahead = await store.lease("a", slow, 1, 1, 5)
    assert (ahead.granted, round(ahead.level, 3)) == (2.0, 7.0)
    some = await store.lease("a", slow, 5, 10, 100)
    assert (some.granted, round(some.level, 3), round(some.wait_s)) == (5.0, 2.0, 3000)
    none = await store.lease("a", slow, 5, 5, 0)
    assert (none.granted, round(none.wait_s)) == (0.0, 3000)
    await store.give_back("a", 3)
    assert (await store.lease("a", slow, 5, 5, 0)).granted == 5.0
    await store.give_back("unknown", 3)
    assert (await store.lease("unknown", slow, 1, 1, 0)).level == 9.0


async def test_the_stores_own_clock_refills_and_never_above_the_burst(store: PortionStore) -> None:
    fast = Limits(100.0, 3)
    assert (await store.lease("a", fast, 1, 3, 0)).granted == 3.0
    await asyncio.sleep(0.05)
    assert (await store.lease("a", fast, 1, 3, 0)).granted >= 3.0
    await asyncio.sleep(0.1)
    assert (await store.lease("a", fast, 1, 99, 0)).granted == 3.0
    assert await store._client.ttl("sealcomb:limits:a") in range(55, 65)


async def test_a_store_whose_clock_goes_back_refills_nothing(store: PortionStore) -> None:
    """B8."""
    await store.lease("a", Limits(100.0, 10), 1, 10, 0)
    now = (await store._client.time())[0]
    set_back: Any = store._client.hset("sealcomb:limits:a", mapping={"level": 0, "at": now + 3600})
    await set_back
    lease = await store.lease("a", Limits(100.0, 10), 1, 1, 0)
    assert (lease.granted, lease.wait_s) == (0.0, 0.01)


async def test_processes_that_say_nothing_are_not_counted(store: PortionStore) -> None:
    assert [await store.beat(name) for name in ("r1", "r2", "r1")] == [1, 2, 2]
    now = (await store._client.time())[0]
    await store._client.zadd("sealcomb:policies", {"r2": now - 6})
    assert await store.beat("r1") == 1


async def test_many_processes_at_once_get_what_the_limit_allows(store: PortionStore) -> None:
    """B8: real time, the real store, a process that ends without giving back."""
    clock = SystemClock()
    replicas = [Replica(store, clock, f"r{number}") for number in range(4)]
    for _ in range(2):
        for replica in replicas:
            await replica.pool.beat()
    limits = Limits(400.0, 100)
    began_s = clock.monotonic_s()

    async def hammer(replica: Replica, until_s: float) -> int:
        admitted = 0
        while clock.monotonic_s() < until_s:
            admitted += await replica.admits(limits)
            await asyncio.sleep(0.0005)
        return admitted

    work = [
        hammer(replica, began_s + (1.0 if number == 3 else 2.0))
        for number, replica in enumerate(replicas)
        for _ in range(8)
    ]
    admitted = sum(await asyncio.gather(*work))
    allowed = 100 + 400 * (clock.monotonic_s() - began_s)
    assert 0.97 * allowed <= admitted <= 1.01 * allowed


async def test_what_is_owed_is_paid_before_anything_is_leased(store: PortionStore) -> None:
    """B8."""
    slow = Limits(0.001, 10)
    assert (await store.lease("a", slow, 1, 1, 0, 4)).level == 5.0
    in_debt = await store.lease("a", slow, 1, 1, 0, 8)
    assert (in_debt.granted, round(in_debt.level), round(in_debt.wait_s)) == (0.0, -3, 4000)
    assert (await store.lease("a", slow, 1, 0, 5)).granted == 0.0


async def test_a_process_that_stood_still_itself_has_not_lost_the_store(store: PortionStore) -> None:
    """B8: or each busy moment would give every process a share of its own."""
    assert await store.beat("r1") == 1
    for _ in range(2):
        lease = asyncio.create_task(store.lease("still", Limits(1.0, 100), 1, 1, 0))
        await asyncio.sleep(0)
        # Longer than it waits for the store.
        time.sleep(0.3)  # noqa: ASYNC251
        assert (await lease).granted == 1.0


async def test_who_is_told_to_stop_while_the_store_answers_stops(
    store: PortionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that came with an answer was lost, and the process never ended."""
    answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def beat(**_: Any) -> int:
        return await answered

    monkeypatch.setattr(store, "_beat", beat)
    asking = asyncio.create_task(store.beat("r1"))
    for _ in range(3):
        await asyncio.sleep(0)
    answered.set_result(1)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_store_that_hangs_is_lost_within_a_moment(server: ValkeyServer) -> None:
    """B9."""
    with running_proxy(server.port) as proxy:
        store = PortionStore(Address("127.0.0.1", proxy.port, tls=False))
        assert (await store.lease("h", Limits(1.0, 5), 1, 1, 0)).granted == 1.0
        proxy.freeze()
        began_s = SystemClock().monotonic_s()
        with pytest.raises(StoreLost):
            await store.lease("h", Limits(1.0, 5), 1, 1, 0)
        assert SystemClock().monotonic_s() - began_s < 5
        proxy.thaw()
        assert (await store.lease("h", Limits(1.0, 5), 1, 1, 0)).granted in (0.0, 1.0)
        await store.close()


async def test_the_store_is_reached_by_tls_and_a_user_of_its_own(tmp_path: Path) -> None:
    """G10: another certificate, a wrong password and clear text all fail."""
    installation = ensure_installation(tmp_path / "keys")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(installation.edge_tls_dir / "cert.pem", installation.edge_tls_dir / "key.pem")
    (tmp_path / "data").mkdir()
    user = ["--user", "sealcomb", "on", ">secret", "~sealcomb:*", "+@all", "-@dangerous"]
    options = [*user, "--user", "default", "off"]
    with running_valkey(tmp_path / "data", *options) as server, running_proxy(server.port, tls) as proxy:
        right = Address(
            "localhost", proxy.port, tls=True, user="sealcomb", password="secret",
            ca_file=installation.edge_ca_file,
        )  # fmt: skip
        wrong = [
            Address("localhost", proxy.port, tls=True, user="sealcomb", password="secret"),
            Address("localhost", proxy.port, tls=True, user="sealcomb", password="x", ca_file=right.ca_file),
            Address("localhost", proxy.port, tls=False, user="sealcomb", password="secret"),
            Address("localhost", server.port, tls=False),
        ]
        store = PortionStore(right)
        await _within_a_minute(lambda: store.beat("r"))
        assert (await _within_a_minute(lambda: store.lease("a", Limits(1.0, 5), 1, 1, 0))).granted == 1.0
        await store.close()
        for address in wrong:
            store = PortionStore(address)
            with pytest.raises(StoreLost):
                await store.lease("a", Limits(1.0, 5), 1, 1, 0)
            await store.close()
        assert "secret" not in repr(right)


async def _within_a_minute(work: Callable[[], Awaitable[_Result]]) -> _Result:
    """A busy machine may take longer than a call waits for the store."""
    for _ in range(100):
        try:
            return await work()
        except StoreLost:
            await asyncio.sleep(0.5)
    return await work()


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("valkey://127.0.0.1:6379/0", True),
        ("valkeys://user@limits.example:6380", True),
        ("valkey://limits.example:6379/0", False),
        ("valkey://127.0.0.1.example:6379", False),
        ("redis://127.0.0.1:6379", False),
        ("valkeys://user:password@limits.example", False),
        ("valkeys:///0", False),
        ("valkeys://limits.example/0?ssl_cert_reqs=none", False),
        ("valkeys://limits.example:99999", False),
    ],
)
def test_a_store_that_a_network_could_change_is_refused(tmp_path: Path, url: str, good: bool) -> None:
    """G10: in clear on loopback alone, unless an operator says otherwise; no password in view."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0", "tls_dir": tmp_path, "context_trust_dir": tmp_path, "database_url": "sqlite://",
        "edge_listen": "127.0.0.1:0", "edge_tls_dir": tmp_path, "run_dir": tmp_path,
        "keyvault_address": "h:1", "vectorstore_address": "h:1", "ingest_address": "h:1",
        "context_key_file": tmp_path, "token_pepper_file": tmp_path, "operator_token_file": tmp_path,
    }  # fmt: skip
    if good:
        assert GatewaySettings(**values, shared_limits_url=url).shared_limits_url == url
        return
    with pytest.raises(ValidationError) as refused:
        GatewaySettings(**values, shared_limits_url=url)
    assert refused.value.errors()[0]["loc"] == ("shared_limits_url",)
    if url == "valkey://limits.example:6379/0":
        GatewaySettings(**values, shared_limits_url=url, shared_limits_insecure=True)


def test_asking_is_told_from_waiting() -> None:
    clock = FakeClock()
    bucket = SharedBuckets(FakeStore(clock), clock, "r").bucket("a", Limits(1.0, 1))
    assert bucket.wait_s(1.0, clock.monotonic_s()) == ASK < 0
