"""Which collections are open: opened on first use, closed by least use under a byte budget, or at once
when their account's key goes.

Each use asks for the collection's data key first, from a cache of bounded age, so a collection that is
in memory is of no use to anybody without the key.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from services.common.datakeys import DataKeys
from services.common.errors import Unavailable
from services.common.sealing import DataKey
from services.vectorstore.catalog import COLLECTION, Descriptor
from services.vectorstore.collection import Collection
from services.vectorstore.opening import Opened, Opener
from services.vectorstore.upkeep import Keeper, Upkeep

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Resident:
    """An open collection."""

    account: str
    collection: Collection
    keeper: Keeper


@dataclass(frozen=True, slots=True)
class Use:
    """An open collection for one call, with the key to write to it."""

    descriptor: Descriptor
    collection: Collection
    key: DataKey


class Residency:
    """The open collections. Everything here runs on the event loop."""

    def __init__(self, opener: Opener, keys: DataKeys, upkeep: Upkeep, size_bytes_max: int) -> None:
        self._opener = opener
        self._keys = keys
        self._upkeep = upkeep
        self._most = size_bytes_max
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._flights: dict[str, asyncio.Task[Resident]] = {}
        # A collection is not opened before its last writer has finished.
        self._closing: dict[str, asyncio.Task[None]] = {}
        # Counts drops, so that an opening that was on its way during one is not kept.
        self._drops = 0

    @property
    def size_bytes(self) -> int:
        """Memory of all open collections, about."""
        return sum(resident.collection.size_bytes for resident in self._resident.values())

    @property
    def count(self) -> int:
        """How many collections are open."""
        return len(self._resident)

    async def use(self, descriptor: Descriptor) -> Use:
        """The open collection, opened if need be. Raises what keyvault or the data say."""
        for _ in range(_TRIES):
            key = await self._keys.current(descriptor.id, COLLECTION)
            resident = self._resident.get(descriptor.id)
            if resident is not None and not resident.collection.usable:
                self._retire(descriptor.id)
                resident = None
            if resident is None:
                resident = await self._open(descriptor, key)
            if descriptor.id in self._resident:
                self._resident.move_to_end(descriptor.id)
            if resident.collection.usable:
                return Use(descriptor, resident.collection, key)
        raise Unavailable("the collection was just closed; try again", retry_after_s=0.1)

    def drop_account(self, account: str) -> None:
        """Closes an account's collections."""
        self._drop(lambda resident: resident.account == account)

    def drop_all(self) -> None:
        """Closes all collections."""
        self._drop(lambda _resident: True)

    async def drop(self, collection: str) -> None:
        """Closes a collection and waits until its last write has ended."""
        self._drops += 1
        if collection in self._resident:
            self._retire(collection)
        if collection in self._closing:
            await asyncio.wait([self._closing[collection]])

    async def close(self) -> None:
        """Closes all collections and waits for their writers."""
        self.drop_all()
        while self._closing:
            await asyncio.wait(list(self._closing.values()))

    def _drop(self, matches: Callable[[Resident], bool]) -> None:
        self._drops += 1
        for id_ in [id_ for id_, resident in self._resident.items() if matches(resident)]:
            self._retire(id_)

    async def _open(self, descriptor: Descriptor, key: DataKey) -> Resident:
        flight = self._flights.get(descriptor.id)
        if flight is None:
            # A task of its own, so that one caller's cancellation does not fail the others.
            flight = asyncio.create_task(self._opened(descriptor, key))
            self._flights[descriptor.id] = flight
            flight.add_done_callback(lambda done: self._landed(descriptor.id, done))
        return await asyncio.shield(flight)

    def _landed(self, id_: str, flight: asyncio.Task[Resident]) -> None:
        if self._flights.get(id_) is flight:
            del self._flights[id_]
        if not flight.cancelled():
            flight.exception()  # marks it as seen where every waiter has gone

    async def _opened(self, descriptor: Descriptor, key: DataKey) -> Resident:
        if descriptor.id in self._closing:
            await asyncio.wait([self._closing[descriptor.id]])
        drops = self._drops
        opened: Opened = await self._opener.open(descriptor)
        keeper = Keeper(opened.collection, self._upkeep, opened.snapshot_bytes)
        resident = Resident(descriptor.account, opened.collection, keeper)
        if drops != self._drops:
            # A key may have gone meanwhile; the caller asks for it again.
            opened.collection.abandon()
            return resident
        self._resident[descriptor.id] = resident
        keeper.start(key)
        self._make_room(descriptor.id)
        return resident

    def _make_room(self, newest: str) -> None:
        size = self.size_bytes
        for id_ in list(self._resident):
            if size <= self._most or id_ == newest:
                break
            size -= self._resident[id_].collection.size_bytes
            self._retire(id_)

    def _retire(self, id_: str) -> None:
        resident = self._resident.pop(id_)
        resident.collection.refuse()
        closing = asyncio.create_task(_close(resident, self._closing.get(id_)))
        self._closing[id_] = closing
        closing.add_done_callback(lambda done: self._closed(id_, done))

    def _closed(self, id_: str, closing: asyncio.Task[None]) -> None:
        if self._closing.get(id_) is closing:
            del self._closing[id_]


async def _close(resident: Resident, before: asyncio.Task[None] | None) -> None:
    if before is not None:
        await asyncio.wait([before])
    await resident.keeper.close()
    await resident.collection.close()
