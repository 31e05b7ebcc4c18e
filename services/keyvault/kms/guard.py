"""A KMS that is asked with care: bounded in time, in number, and for one account at a time.

Each account has a lane with one call in it, a budget of calls and a bounded queue, so that an account's
storm delays that account alone and cannot use up a quota that all share. Equal unwraps that come
together are one call. What got no answer is tried again with jitter while its deadline allows; a
creation only if the KMS certainly did nothing. A KMS that keeps silent is left alone but for a
probe twice a second, so that its recovery is noticed at once and nobody waits for it meanwhile.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from prometheus_client import Counter, Histogram

from services.common.clock import Clock
from services.common.errors import SealcombError
from services.keyvault.kms.faults import KmsThrottled, KmsUnavailable
from services.keyvault.kms.protocol import KeyReference, Kms
from services.keyvault.records import AccountKey, Wrapping

_ATTEMPTS = 3
_DELAY_S = 0.05
_WAITING_MAX = 256
_LANES_MAX = 10_000
# Little, or an account that was quiet could use up a whole second of everybody's quota.
_BURST_S = 0.5
_SILENT_AFTER = 8
_PROBE_S = 0.5
_RANDOM = secrets.SystemRandom()
_Result = TypeVar("_Result")

_calls = Counter(
    "sealcomb_kms_calls_total", "Calls of a KMS by outcome", ["provider", "operation", "outcome"]
)
_seconds = Histogram(
    "sealcomb_kms_call_seconds",
    "Duration of calls of a KMS",
    ["provider", "operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


@dataclass(slots=True)
class _Lane:
    """One account's way to the KMS."""

    budget: float
    filled_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    operation: str
    account: str
    deadline_s: float
    # Whether doing it twice is the same as once.
    repeats: bool


class _LeftAlone(KmsUnavailable):
    """The KMS was not asked, since it keeps silent."""


class GuardedKms:
    """Another Kms behind lanes, deadlines and repetitions."""

    def __init__(
        self,
        kms: Kms,
        clock: Clock,
        timeout_s: float = 5.0,
        calls_per_second: float = 50.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = _RANDOM.uniform,
    ) -> None:
        self._kms = kms
        self._clock = clock
        self._timeout_s = timeout_s
        self._rate = calls_per_second
        self._sleep = sleep
        self._uniform = uniform
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._unwraps: dict[tuple[AccountKey, Wrapping, bytes], asyncio.Task[bytes]] = {}
        self._silences = 0
        self._probe_s = 0.0

    @property
    def provider(self) -> str:
        """The guarded one's."""
        return self._kms.provider

    @property
    def fingerprint(self) -> bytes:
        """The guarded one's."""
        return self._kms.fingerprint

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new account key."""
        work = partial(self._kms.new_key, account, version)
        return await self._ask(self._call("new_key", account, repeats=False), work)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A key of somebody else."""
        work = partial(self._kms.adopt_key, account, version, reference)
        return await self._ask(self._call("adopt_key", account), work)

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key wrapped."""
        work = partial(self._kms.wrap, key, wrapping, secret)
        return await self._ask(self._call("wrap", key.account), work)

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """A data key; those who want the same one at the same time share one call."""
        name = (key, wrapping, wrapped)
        flight = self._unwraps.get(name)
        if flight is None:
            work = partial(self._kms.unwrap, key, wrapping, wrapped)
            flight = asyncio.create_task(self._ask(self._call("unwrap", key.account), work))
            self._unwraps[name] = flight
            flight.add_done_callback(lambda done: self._landed(name, done))
        return await asyncio.shield(flight)

    async def destroy_key(self, key: AccountKey) -> None:
        """Destroys a key."""
        await self._ask(self._call("destroy_key", key.account), partial(self._kms.destroy_key, key))

    def forget(self, account: str) -> None:
        """Drops what is held for the account; a call on its way helps nobody who asks from now on."""
        for name in [name for name in self._unwraps if name[0].account == account]:
            del self._unwraps[name]
        self._kms.forget(account)

    async def close(self) -> None:
        """Closes the guarded one."""
        await self._kms.close()

    def _call(self, operation: str, account: str, *, repeats: bool = True) -> _Call:
        return _Call(operation, account, self._clock.monotonic_s() + self._timeout_s, repeats)

    def _landed(self, name: tuple[AccountKey, Wrapping, bytes], flight: asyncio.Task[bytes]) -> None:
        if self._unwraps.get(name) is flight:
            del self._unwraps[name]
        if not flight.cancelled():
            flight.exception()  # marks it as seen where every waiter has gone

    async def _ask(self, call: _Call, work: Callable[[], Awaitable[_Result]]) -> _Result:
        lane = self._lane(call.account)
        if lane.waiting >= _WAITING_MAX:
            raise KmsUnavailable(unheard=True)
        lane.waiting += 1
        # A task of its own: a caller who gives up leaves the lane taken until the KMS has answered.
        task = asyncio.create_task(self._alone(lane, call, work))
        task.add_done_callback(_seen)
        try:
            return await asyncio.wait_for(asyncio.shield(task), self._timeout_s)
        except TimeoutError:
            raise KmsUnavailable from None

    async def _alone(self, lane: _Lane, call: _Call, work: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            async with lane.lock:
                for attempt in range(1, _ATTEMPTS + 1):
                    await self._spend(lane, call)
                    try:
                        return await self._once(call, work)
                    except _LeftAlone:
                        raise
                    except KmsUnavailable as error:
                        if attempt == _ATTEMPTS or not (call.repeats or error.unheard):
                            raise
                        delay_s = self._uniform(0, _DELAY_S * 4**attempt)
                        if isinstance(error, KmsThrottled) and error.retry_after_s:
                            delay_s += error.retry_after_s
                        await self._wait(delay_s, call)
                raise KmsUnavailable
        finally:
            lane.waiting -= 1

    async def _once(self, call: _Call, work: Callable[[], Awaitable[_Result]]) -> _Result:
        started_s = self._clock.monotonic_s()
        if self._silences >= _SILENT_AFTER:
            if started_s < self._probe_s:
                raise _LeftAlone(unheard=True)
            self._probe_s = started_s + _PROBE_S
        outcome = "OK"
        try:
            result = await work()
        except SealcombError as error:
            outcome = error.reason
            silent = isinstance(error, KmsUnavailable) and not isinstance(error, KmsThrottled)
            self._silences = self._silences + 1 if silent else 0
            raise
        else:
            self._silences = 0
            return result
        finally:
            _calls.labels(self.provider, call.operation, outcome).inc()
            _seconds.labels(self.provider, call.operation).observe(self._clock.monotonic_s() - started_s)

    async def _spend(self, lane: _Lane, call: _Call) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= call.deadline_s:
            raise KmsUnavailable(unheard=True)
        lane.budget = min(self._rate * _BURST_S, lane.budget + (now_s - lane.filled_s) * self._rate)
        lane.filled_s = now_s
        lane.budget -= 1
        if lane.budget < 0:
            try:
                await self._wait(-lane.budget / self._rate, call)
            except KmsUnavailable:
                lane.budget += 1
                raise

    async def _wait(self, delay_s: float, call: _Call) -> None:
        if self._clock.monotonic_s() + delay_s >= call.deadline_s:
            raise KmsUnavailable
        await self._sleep(delay_s)

    def _lane(self, account: str) -> _Lane:
        lane = self._lanes.get(account)
        if lane is None:
            lane = _Lane(self._rate * _BURST_S, self._clock.monotonic_s())
            self._lanes[account] = lane
            if len(self._lanes) > _LANES_MAX:
                self._drop_an_idle_lane()
        self._lanes.move_to_end(account)
        return lane

    def _drop_an_idle_lane(self) -> None:
        for account, lane in self._lanes.items():
            if not lane.waiting:
                del self._lanes[account]
                return


def _seen(task: asyncio.Task[_Result]) -> None:
    if not task.cancelled():
        task.exception()  # marks it as seen where its caller has gone
