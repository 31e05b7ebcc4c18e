"""Buckets whose level is in a shared store, of which this process leases small portions.

A call is taken from the portion that is here. When it is used up, one question to the store gets more for all
the calls that wait, and for a busy account some ahead, so that most calls wait for nobody. What the
store refused is not asked again before it can be there. A portion that nobody uses is given back.

Lost store: each process lets in what its share of the limits allows, by a bucket of its own (limits
divided by the processes last seen), until the store answers again. Never more, never without a limit.
What it let in by itself it owes to the store, which may have granted the same calls to others meanwhile.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

import structlog
from prometheus_client import Counter, Gauge

from services.common.clock import Clock
from services.gateway.buckets import ASK, Limits, TokenBucket
from services.gateway.portions.lease import Lease, StoreLost

BEAT_EVERY_S = 0.5
# A busy account leases this much of its use ahead.
_AHEAD_S = 0.05
# Refused, the store is not asked again sooner than this.
_ASK_AGAIN_S = 0.005
_IDLE_S = 60.0
_SWEEP_AT = 4096
_EPSILON = 1e-6
_log = structlog.get_logger("limits")
_store_lost = Gauge("sealcomb_limits_store_lost", "1 while the store of shared limits does not answer")
_leases = Counter("sealcomb_limits_leases_total", "Questions to the store of shared limits")


class Store(Protocol):
    """Where the levels are."""

    async def lease(
        self, name: str, limits: Limits, first: float, must: float, ahead: float, owed: float = 0.0
    ) -> Lease:
        """Leases from a bucket, after what is owed to it. Raises StoreLost."""

    async def give_back(self, name: str, amount: float) -> None:
        """Gives back what is not used. Raises StoreLost."""

    async def beat(self, replica: str) -> int:
        """Says that this process is there; how many are. Raises StoreLost."""

    async def close(self) -> None:
        """Ends every connection."""


class SharedBucket:
    """One bucket; what `wait_s` answers is about the portion that is here."""

    def __init__(self, name: str, limits: Limits, pool: SharedBuckets) -> None:
        self.name = name
        self.limits = limits
        self.touched_s = 0.0
        self.portion = 0.0
        self._pool = pool
        self._level = float(limits.burst)
        self._refused_until_s = -math.inf
        self._fallback: TokenBucket | None = None
        self._fallback_limits = limits
        self._loss = -1
        # Let in by the fallback, and not paid to the store.
        self._alone = 0.0
        self._wanted: list[float] = []
        self._answer: asyncio.Future[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._used = 0.0
        self._asked_s = 0.0
        self._taken = 0
        self._taken_seen = -1

    def wait_s(self, cost: float, now_s: float) -> float:
        """How long until `cost` is there: 0 if it is, ASK if the store must be asked."""
        need = min(cost, float(self.limits.burst))
        if self.portion + _EPSILON >= need:
            return 0.0
        if self._pool.lost:
            return self._own(now_s).wait_s(cost, now_s)
        if now_s < self._refused_until_s:
            return math.ceil((self._refused_until_s - now_s) * 1000) / 1000
        return ASK

    def take(self, cost: float) -> None:
        """Takes what `wait_s` found to be there."""
        need = min(cost, float(self.limits.burst))
        if self.portion + _EPSILON >= need:
            self.portion = max(0.0, self.portion - need)
            self._used += need
            self._taken += 1
            if self.portion < need and not self._pool.lost:
                self._ask_ahead()
        elif self._fallback is not None:
            self._fallback.take(cost)
            self._alone += need

    async def ask(self, cost: float) -> None:
        """Asks the store, with everyone else who waits; afterwards `wait_s` tells."""
        self._wanted.append(min(cost, float(self.limits.burst)))
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        if self._asking is None:
            self._start()
        # Who stops waiting does not end it for the others.
        await asyncio.shield(answer)

    def change(self, limits: Limits) -> None:
        """New limits at once; what is here of a portion is not kept."""
        self.limits = limits
        self.portion = 0.0
        self._refused_until_s = -math.inf

    def is_unused(self) -> bool:
        """Whether nobody took anything since this was last asked, though there is a portion."""
        unused = self.portion > _EPSILON and self._taken == self._taken_seen
        self._taken_seen = self._taken
        return unused

    async def give_back(self) -> None:
        """Gives the portion back."""
        portion, self.portion = self.portion, 0.0
        if portion > _EPSILON:
            await self._pool.store.give_back(self.name, portion)

    def _ask_ahead(self) -> None:
        if self._asking is None and self._ahead(self._pool.now_s()) >= 1:
            self._start()

    def _ahead(self, now_s: float) -> float:
        per_second = self._used / max(now_s - self._asked_s, 0.02)
        return float(math.floor(min(per_second, self.limits.calls_per_second) * _AHEAD_S))

    def _start(self) -> None:
        self._asking = asyncio.get_running_loop().create_task(self._ask_all())

    async def _ask_all(self) -> None:
        try:
            while True:
                wanted, self._wanted = self._wanted, []
                answer, self._answer = self._answer, None
                try:
                    # Who came while the store refused others is refused with them.
                    if self._pool.now_s() >= self._refused_until_s:
                        await self._ask(wanted)
                finally:
                    if answer is not None:
                        answer.set_result(None)
                if not self._wanted:
                    return
        finally:
            self._asking = None

    async def _ask(self, wanted: list[float]) -> None:
        now_s = self._pool.now_s()
        ahead = self._ahead(now_s)
        self._used, self._asked_s = 0.0, now_s
        first = wanted[0] if wanted else 1.0
        owed = self._owed(now_s)
        _leases.inc()
        try:
            lease = await self._pool.store.lease(self.name, self.limits, first, sum(wanted), ahead, owed)
        except StoreLost:
            self._pool.lose()
            return
        self._alone = 0.0
        self.portion += lease.granted
        self._level = lease.level
        if lease.wait_s > 0:
            self._refused_until_s = self._pool.now_s() + max(lease.wait_s, _ASK_AGAIN_S)

    def _owed(self, now_s: float) -> float:
        # Not what has come again since, or a long loss would be paid for long after it.
        return 0.0 if self._fallback is None else min(self._alone, self._fallback.missing(now_s))

    def _own(self, now_s: float) -> TokenBucket:
        share = self._pool.share_of(self.limits)
        if self._fallback is None:
            self._fallback = TokenBucket(share, now_s)
        elif self._fallback_limits != share:
            self._fallback.change(share, now_s)
        self._fallback_limits = share
        if self._loss != self._pool.losses:
            # No more than this process's share of what was left when the store was last heard.
            self._loss = self._pool.losses
            self._fallback.lower(self._level / self._pool.replicas, now_s)
        return self._fallback


class SharedBuckets:
    """The buckets of accounts and of tokens in one store, by their ids; `run` keeps in touch with it."""

    def __init__(self, store: Store, clock: Clock, replica: str, replicas_min: int = 1) -> None:
        self.store = store
        self.lost = False
        # Counts how often the store was lost.
        self.losses = 0
        self.replicas = replicas_min
        self._clock = clock
        self._replica = replica
        self._replicas_min = replicas_min
        self._buckets: dict[str, SharedBucket] = {}

    def bucket(self, name: str, limits: Limits) -> SharedBucket:
        """The bucket of this name, with these limits from now on."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = SharedBucket(name, limits, self)
        elif bucket.limits != limits:
            bucket.change(limits)
        bucket.touched_s = self.now_s()
        return bucket

    def now_s(self) -> float:
        """The monotonic clock."""
        return self._clock.monotonic_s()

    def lose(self) -> None:
        """The store does not answer: from now on each process keeps to its share."""
        if not self.lost:
            self.lost = True
            self.losses += 1
            _store_lost.set(1)
            _log.warning("the store of shared limits is lost", count=self.replicas)

    def share_of(self, limits: Limits) -> Limits:
        """What this process may let in by itself: at least one call."""
        return Limits(limits.calls_per_second / self.replicas, max(1, limits.burst // self.replicas))

    async def run(self) -> None:
        """Keeps in touch until cancelled."""
        while True:
            await self.beat()
            await self.tidy()
            await asyncio.sleep(BEAT_EVERY_S)

    async def beat(self) -> None:
        """Says once that this process is there, and sees whether the store is."""
        try:
            seen = await self.store.beat(self._replica)
        except StoreLost:
            self.lose()
            return
        self.replicas = max(seen, self._replicas_min)
        if self.lost:
            self.lost = False
            _store_lost.set(0)
            _log.info("the store of shared limits answers again", count=self.replicas)

    async def tidy(self) -> None:
        """Gives back what nobody used since the last time, and forgets buckets that nobody uses."""
        if self.lost:
            return
        try:
            for bucket in [one for one in self._buckets.values() if one.is_unused()]:
                await bucket.give_back()
        except StoreLost:
            self.lose()
        if len(self._buckets) >= _SWEEP_AT:
            idle_since_s = self.now_s() - _IDLE_S
            kept = {name: one for name, one in self._buckets.items() if one.touched_s >= idle_since_s}
            self._buckets = kept

    async def close(self) -> None:
        """Gives everything back, as far as that is possible, and leaves the store."""
        try:
            for bucket in list(self._buckets.values()):
                if self.lost:
                    break
                await bucket.give_back()
        except StoreLost:
            self.lose()
        finally:
            await self.store.close()
