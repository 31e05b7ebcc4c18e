"""Token buckets: how many calls an account, a token and a client address may make.

A bucket holds up to `burst` and refills at `per_second`, by the monotonic clock, so that a jump of
wall time gives nothing. A refused call learns how long to wait so that the same call, repeated
then, is admitted. Buckets of accounts and tokens exist only for authenticated calls; addresses
share a table of fixed size, so no flood of names makes memory grow.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from services.common.clock import Clock

# What floating-point refills may miss of a whole call.
_EPSILON = 1e-9
_ADDRESS_SLOTS = 16_384
# Addresses whose slot need not be computed again.
_ADDRESSES_KNOWN = 4096
_SWEEP_AT = 4096
# Sessions hold a bucket for less than this, so an older one is nobody's.
_IDLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Refill rate in calls per second, and capacity in calls."""

    calls_per_second: float
    burst: int


ASK = -1.0


class Bucket(Protocol):
    """What the authorizer takes calls from."""

    def wait_s(self, cost: float, now_s: float) -> float:
        """How long until `cost` is there: 0 if it is, ASK if only `ask` can tell."""

    def take(self, cost: float) -> None:
        """Takes what `wait_s` found to be there."""

    async def ask(self, cost: float) -> None:
        """Finds out what `wait_s` could not tell."""


class TokenBucket:
    """One bucket in memory; starts full."""

    __slots__ = ("_capacity", "_level", "_per_second", "_updated_s")

    def __init__(self, limits: Limits, now_s: float) -> None:
        self._per_second = limits.calls_per_second
        self._capacity = float(limits.burst)
        self._level = self._capacity
        self._updated_s = now_s

    def wait_s(self, cost: float, now_s: float) -> float:
        """How long until `cost` is there: 0 if it is. A cost above the capacity wants a full bucket."""
        self._refill(now_s)
        missing = min(cost, self._capacity) - self._level
        if missing <= _EPSILON:
            return 0.0
        # Rounded up to a millisecond, so that who obeys is never early.
        return math.ceil(missing / self._per_second * 1000) / 1000

    def take(self, cost: float) -> None:
        """Takes what `wait_s` found to be there."""
        self._level = max(0.0, self._level - cost)

    def lower(self, level: float, now_s: float) -> None:
        """At most this much is in it now."""
        self._refill(now_s)
        self._level = min(self._level, level)

    def missing(self, now_s: float) -> float:
        """What it would take to fill it."""
        self._refill(now_s)
        return self._capacity - self._level

    async def ask(self, cost: float) -> None:
        """Nothing: `wait_s` always tells."""

    def change(self, limits: Limits, now_s: float) -> None:
        """New limits at once; what is in the bucket stays, up to the new capacity."""
        self._refill(now_s)
        self._per_second = limits.calls_per_second
        self._capacity = float(limits.burst)
        self._level = min(self._level, self._capacity)

    def is_idle(self, now_s: float) -> bool:
        """Whether it is full and was not asked for a while."""
        idle_s = now_s - self._updated_s
        return idle_s > _IDLE_S and self._level + idle_s * self._per_second >= self._capacity

    def _refill(self, now_s: float) -> None:
        elapsed_s = now_s - self._updated_s
        if elapsed_s > 0:
            self._level = min(self._capacity, self._level + elapsed_s * self._per_second)
            self._updated_s = now_s


class Buckets(Protocol):
    """The buckets of accounts, or of tokens, by id."""

    def bucket(self, name: str, limits: Limits) -> Bucket:
        """The bucket of this name, with these limits from now on."""


class BucketTable:
    """The buckets of accounts, or of tokens, by id, for the only policy process.

    What is idle and full is forgotten, as a new one is the same.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[TokenBucket, Limits]] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, name: str, limits: Limits) -> TokenBucket:
        """The bucket of this name, with these limits from now on."""
        now_s = self._clock.monotonic_s()
        found = self._buckets.get(name)
        if found is None:
            if len(self._buckets) >= self._sweep_at:
                self._sweep(now_s)
            bucket = TokenBucket(limits, now_s)
        else:
            bucket = found[0]
            if found[1] == limits:
                return bucket
            bucket.change(limits, now_s)
        self._buckets[name] = (bucket, limits)
        return bucket

    def _sweep(self, now_s: float) -> None:
        self._buckets = {name: held for name, held in self._buckets.items() if not held[0].is_idle(now_s)}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._buckets))


class AddressBuckets:
    """Buckets of client addresses: one for each slot of a table of fixed size.

    An IPv6 client is its /64. Which addresses share a slot depends on a secret, so nobody can aim at another.
    """

    def __init__(self, limits: Limits, clock: Clock, secret: bytes, slots: int = _ADDRESS_SLOTS) -> None:
        self._per_second = limits.calls_per_second
        self._capacity = float(limits.burst)
        self._clock = clock
        self._secret = secret
        self._slots = slots
        self._levels = array("d", [self._capacity]) * slots
        self._updated_s = array("d", [clock.monotonic_s()]) * slots
        self._slot_of = lru_cache(_ADDRESSES_KNOWN)(self._find_slot)

    def wait_s(self, address: str, cost: float = 1.0) -> float:
        """How long until `cost` is in the address's bucket: 0 if it is."""
        missing = min(cost, self._capacity) - self._levels[self._refilled(address)]
        return 0.0 if missing <= _EPSILON else math.ceil(missing / self._per_second * 1000) / 1000

    def take(self, address: str, cost: float = 1.0) -> None:
        """Takes what is there of `cost`."""
        slot = self._refilled(address)
        self._levels[slot] = max(0.0, self._levels[slot] - cost)

    def slot_of(self, address: str) -> int:
        """Which bucket the address has."""
        return self._slot_of(address)

    def left(self, address: str) -> float:
        """What is in the address's bucket."""
        return self._levels[self._refilled(address)]

    def try_take(self, address: str, cost: float) -> float:
        """Takes `cost` if it is there and gives 0, or says how long until it is."""
        slot = self._refilled(address)
        level = self._levels[slot]
        missing = min(cost, self._capacity) - level
        if missing > _EPSILON:
            return math.ceil(missing / self._per_second * 1000) / 1000
        self._levels[slot] = max(0.0, level - cost)
        return 0.0

    def _refilled(self, address: str) -> int:
        slot = self._slot_of(address)
        now_s = self._clock.monotonic_s()
        gained = (now_s - self._updated_s[slot]) * self._per_second
        if gained > 0:
            self._levels[slot] = min(self._capacity, self._levels[slot] + gained)
            self._updated_s[slot] = now_s
        return slot

    def _find_slot(self, address: str) -> int:
        digest = hashlib.blake2b(_network_of(address), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big") % self._slots


def _network_of(address: str) -> bytes:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        # Whatever has no address shares one bucket.
        return b""
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return mapped.packed if mapped else parsed.packed[:8]
    return parsed.packed
