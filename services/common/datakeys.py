"""Data keys as the services use them: released by keyvault, held for a bounded time, dropped on command.

The account always comes from the call in progress, so a cached key never serves another
account's call. A key is held for at most the TTL after its release (the published hard bound of
the off switch); `drop_account` makes it sooner.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from services.common.clock import Clock
from services.common.context import current_account
from services.common.sealing import DataKey

TTL_S = 60.0
_ENTRIES_MAX = 50_000


class KeySource(Protocol):
    """Where data keys come from: keyvault, or its twin in tests."""

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """The key of the current account's resource; the current one, made if need be, where `key_id` is empty."""


@dataclass(frozen=True, slots=True)
class _Held:
    key: DataKey
    until_s: float


_Slot = tuple[str, str, str, str]


class DataKeys:
    """A cache of data keys in front of a key source; one request in flight for each key."""

    def __init__(self, source: KeySource, clock: Clock, ttl_s: float = TTL_S) -> None:
        self._source = source
        self._clock = clock
        self._ttl_s = ttl_s
        self._held: OrderedDict[_Slot, _Held] = OrderedDict()
        self._flights: dict[_Slot, asyncio.Task[DataKey]] = {}
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
        for slot in [slot for slot in self._flights if matches(slot)]:
            del self._flights[slot]

    async def _get(self, resource: str, purpose: str, key_id: str) -> DataKey:
        slot = (current_account(), resource, purpose, key_id)
        held = self._held.get(slot)
        if held is not None and self._clock.monotonic_s() < held.until_s:
            self._held.move_to_end(slot)
            return held.key
        flight = self._flights.get(slot)
        if flight is None:
            # A task of its own, so that one caller's cancellation does not fail the others.
            flight = asyncio.create_task(self._fetch(slot))
            self._flights[slot] = flight
            flight.add_done_callback(lambda done: self._landed(slot, done))
        return await asyncio.shield(flight)

    def _landed(self, slot: _Slot, flight: asyncio.Task[DataKey]) -> None:
        if self._flights.get(slot) is flight:
            del self._flights[slot]
        if not flight.cancelled():
            flight.exception()  # marks it as seen where every waiter has gone

    async def _fetch(self, slot: _Slot) -> DataKey:
        drops = self._drops
        _account, resource, purpose, key_id = slot
        key = await self._source.get_data_key(resource, purpose, key_id)
        if drops == self._drops:
            held = _Held(key, self._clock.monotonic_s() + self._ttl_s)
            self._held[slot] = held
            self._held[(*slot[:3], key.id)] = held
            while len(self._held) > _ENTRIES_MAX:
                self._held.popitem(last=False)
        return key


class _Predicate(Protocol):
    def __call__(self, slot: _Slot, /) -> bool: ...
