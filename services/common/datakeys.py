"""Data keys as the services use them: released by keyvault, held for a bounded time, dropped on command.

The account always comes from the call in progress, so a cached key never serves another
account's call. A key is held for at most the TTL after its release (the published hard bound of
the off switch); `drop_account` makes it sooner.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from services.common.clock import Clock
from services.common.context import current_account, current_caller
from services.common.sealing import DataKey

TTL_S = 60.0
_ENTRIES_MAX = 50_000


class KeySource(Protocol):
    """Where data keys come from: keyvault, or its twin in tests."""

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """The key of the current account's resource; without `key_id` the current one, made if need be."""


@dataclass(frozen=True, slots=True)
class AgedKeys:
    """Data keys that were replaced and are still there, and from when on unused ones go (0: none waits)."""

    left: int
    destroyable_s: float


class AgedKeyPeer(Protocol):
    """Who destroys aged data keys that nothing is sealed under: keyvault, or its twin in tests."""

    async def report_data_keys(
        self, resource: str, purpose: str, in_use: Iterable[str], looked_s: float
    ) -> AgedKeys:
        """Says which keys of a resource a look at all that is sealed found, which began at `looked_s`."""


@dataclass(frozen=True, slots=True)
class _Held:
    key: DataKey
    until_s: float


_Slot = tuple[str, str, str, str]
# A flight belongs to those who call under one context: its refusal is not another caller's.
_Flight = tuple[_Slot, str]


class DataKeys:
    """A cache of data keys in front of a key source; one request in flight for each key and context."""

    def __init__(self, source: KeySource, clock: Clock, ttl_s: float = TTL_S) -> None:
        self._source = source
        self._clock = clock
        self._ttl_s = ttl_s
        self._held: OrderedDict[_Slot, _Held] = OrderedDict()
        self._flights: dict[_Flight, asyncio.Task[DataKey]] = {}
        self._sweep_s = clock.monotonic_s() + ttl_s
        # Counts drops, so that a release that was on its way during one is not kept.
        self._drops = 0

    async def current(self, resource: str, purpose: str) -> DataKey:
        """The key to seal with."""
        return await self._get(resource, purpose, "")

    async def by_id(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """The key that a sealed object names."""
        return await self._get(resource, purpose, key_id)

    def drop_account(self, account: str) -> None:
        """Forgets every key of an account."""
        self._drop(lambda slot: slot[0] == account)

    def drop_resource(self, account: str, resource: str) -> None:
        """Forgets every key of a resource."""
        self._drop(lambda slot: slot[:2] == (account, resource))

    def drop_all(self) -> None:
        """Forgets every key."""
        self._drop(lambda _slot: True)

    def _drop(self, matches: _Predicate) -> None:
        self._drops += 1
        for slot in [slot for slot in self._held if matches(slot)]:
            del self._held[slot]
        for flight in [flight for flight in self._flights if matches(flight[0])]:
            del self._flights[flight]

    async def _get(self, resource: str, purpose: str, key_id: str) -> DataKey:
        slot = (current_account(), resource, purpose, key_id)
        held = self._held.get(slot)
        if held is not None and self._clock.monotonic_s() < held.until_s:
            self._held.move_to_end(slot)
            return held.key
        name = (slot, current_caller().text)
        flight = self._flights.get(name)
        if flight is None:
            # A task of its own, so that one caller's cancellation does not fail the others.
            flight = asyncio.create_task(self._fetch(slot))
            self._flights[name] = flight
            flight.add_done_callback(lambda done: self._landed(name, done))
        return await asyncio.shield(flight)

    def _landed(self, name: _Flight, flight: asyncio.Task[DataKey]) -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]
        if not flight.cancelled():
            flight.exception()  # marks it as seen where every waiter has gone

    async def _fetch(self, slot: _Slot) -> DataKey:
        drops = self._drops
        # From before the release, which happens at some moment until the answer.
        until_s = self._clock.monotonic_s() + self._ttl_s
        _account, resource, purpose, key_id = slot
        key = await self._source.get_data_key(resource, purpose, key_id)
        if drops == self._drops:
            self._hold(slot, _Held(key, until_s))
        return key

    def _hold(self, slot: _Slot, held: _Held) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= self._sweep_s:
            # What nobody asks for again would otherwise stay in memory beyond its time.
            self._sweep_s = now_s + self._ttl_s
            for stale in [slot for slot, held in self._held.items() if held.until_s <= now_s]:
                del self._held[stale]
        self._held[slot] = held
        self._held[(*slot[:3], held.key.id)] = held
        while len(self._held) > _ENTRIES_MAX:
            self._held.popitem(last=False)


class _Predicate(Protocol):
    def __call__(self, slot: _Slot, /) -> bool: ...
