"""Which collections are open: opened on first use, closed by least use under a byte budget, or at once
when their account's key goes.

Each use asks for the collection's data key first, from a cache of bounded age, so a collection that is
in memory is of no use to anybody without the key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from services.common.datakeys import DataKeys
from services.common.errors import NotFound, SealcombError
from services.common.sealing import DataKey
from services.vectorstore.catalog import COLLECTION, Descriptor, no_such_collection
from services.vectorstore.collection import Collection, CollectionClosed
from services.vectorstore.leases import Leases
from services.vectorstore.opening import Opened, Opener
from services.vectorstore.upkeep import Keeper, Upkeep

_TRIES = 5
# After closing this share of the budget, freed memory is handed back.
_GIVE_BACK_SHARE = 8
_HANDED_OVER_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Resident:
    """An open collection."""

    account: str
    collection: Collection
    keeper: Keeper


@dataclass(slots=True)
class _Flight:
    """An opening on its way; one that was dropped meanwhile is not kept."""

    account: str
    task: asyncio.Task[Resident] | None = None
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """An open collection for one call, with the key to write to it."""

    descriptor: Descriptor
    collection: Collection
    key: DataKey


class Residency:
    """The open collections. Everything here runs on the event loop."""

    def __init__(
        self,
        opener: Opener,
        keys: DataKeys,
        upkeep: Upkeep,
        leases: Leases,
        size_bytes_max: int,
        give_back: Callable[[], object] = lambda: None,
    ) -> None:
        self._opener = opener
        self._leases = leases
        # Reads again what a collection is, where others may have changed it.
        self.reread: Callable[[Descriptor], Awaitable[Descriptor]] = _as_it_is
        self._giving_up: set[asyncio.Task[None]] = set()
        self._keys = keys
        self._upkeep = upkeep
        self._most = size_bytes_max
        self._give_back = give_back
        # Of collections closed since memory was handed back.
        self._freed_bytes = 0
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        # A collection is not opened before its last writer has finished.
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Memory of all open collections, about."""
        return self._size_bytes

    def peek(self, collection: str) -> Resident | None:
        """The collection if it is open, without a claim to use it."""
        return self._resident.get(collection)

    @property
    def count(self) -> int:
        """How many collections are open."""
        return len(self._resident)

    async def hold(self, descriptor: Descriptor) -> Descriptor:
        """The collection as it is, held by this replica from now on. Raises HeldElsewhere."""
        if self._leases.epoch_of(descriptor.id) is None and await self._leases.claim(
            descriptor.account, descriptor.id
        ):
            return await self.reread(descriptor)
        return descriptor

    async def use(self, descriptor: Descriptor) -> Use:
        """The open collection, opened if need be. Raises HeldElsewhere, and what keyvault or the data say."""
        for _ in range(_TRIES):
            descriptor = await self.hold(descriptor)
            key = await self._key(descriptor)
            resident = self._resident.get(descriptor.id)
            if resident is not None and not _serves(resident, descriptor):
                self._retire(descriptor.id)
                resident = None
            if resident is None:
                resident = await self._open(descriptor, key)
            if descriptor.id in self._resident:
                self._resident.move_to_end(descriptor.id)
            if _serves(resident, descriptor) and self._leases.epoch_of(descriptor.id) is not None:
                return Use(descriptor, resident.collection, key)
        raise CollectionClosed

    def drop_account(self, account: str) -> None:
        """Closes an account's collections."""
        self._drop(lambda owner: owner == account)

    def drop_all(self) -> None:
        """Closes all collections."""
        self._drop(lambda _owner: True)

    async def drop(self, collection: str) -> None:
        """Closes a collection and waits until its last write has ended."""
        if collection in self._flights:
            self._flights.pop(collection).dropped = True
        if collection in self._resident:
            self._retire(collection)
        if collection in self._closing:
            await asyncio.wait([self._closing[collection]])

    async def hand_over(self) -> None:
        """Closes what this replica holds and gives it back, a few at a time."""
        held = iter(self._leases.held())

        async def some() -> None:
            for collection in held:
                await self._leases.give_up(collection, partial(self._dropped, collection))

        await asyncio.gather(*(some() for _ in range(_HANDED_OVER_AT_ONCE)))

    async def _dropped(self, collection: str) -> bool:
        await self.drop(collection)
        return True

    async def close(self) -> None:
        """Closes all collections and waits for their writers."""
        self.drop_all()
        while self._closing:
            await asyncio.wait(list(self._closing.values()))

    def _drop(self, matches: Callable[[str], bool]) -> None:
        for id_ in [id_ for id_, flight in self._flights.items() if matches(flight.account)]:
            self._flights.pop(id_).dropped = True
        for id_ in [id_ for id_, resident in self._resident.items() if matches(resident.account)]:
            self._retire(id_)

    async def _key(self, descriptor: Descriptor) -> DataKey:
        try:
            return await self._keys.current(descriptor.id, COLLECTION)
        except NotFound:
            # Its keys are destroyed: the collection is being deleted.
            raise no_such_collection() from None

    async def _open(self, descriptor: Descriptor, key: DataKey) -> Resident:
        flight = self._flights.get(descriptor.id)
        if flight is None or flight.task is None:
            flight = self._flights[descriptor.id] = _Flight(descriptor.account)
            # A task of its own, so that one caller's cancellation does not fail the others.
            flight.task = asyncio.create_task(self._opened(descriptor, key, flight))
            flight.task.add_done_callback(_seen)
        return await asyncio.shield(flight.task)

    async def _opened(self, descriptor: Descriptor, key: DataKey, flight: _Flight) -> Resident:
        try:
            while descriptor.id in self._closing:
                await asyncio.wait([self._closing[descriptor.id]])
            opened: Opened = await self._opener.open(descriptor)
        finally:
            if self._flights.get(descriptor.id) is flight:
                del self._flights[descriptor.id]
        keeper = Keeper(opened.collection, self._upkeep, opened.layout, leftovers=opened.leftovers)
        resident = Resident(descriptor.account, opened.collection, keeper)
        if flight.dropped:
            # A key may have gone meanwhile; the caller asks for it again.
            opened.collection.abandon()
            return resident
        self._resident[descriptor.id] = resident
        opened.collection.on_resized = lambda delta: self._resized(descriptor.id, delta)
        self._resized(descriptor.id, opened.collection.size_bytes)
        keeper.start(key)
        return resident

    def _resized(self, id_: str, delta: int) -> None:
        """Counts what a collection has grown by, and closes the least used ones beyond the budget."""
        self._size_bytes += delta
        if self._size_bytes <= self._most:
            return
        for other in list(self._resident):
            if self._size_bytes <= self._most:
                break
            if other != id_:
                self._retire(other)
                self._give_up(other)

    def _give_up(self, id_: str) -> None:
        """Lets whoever is asked next hold what was closed for want of memory."""

        async def closed() -> bool:
            if id_ in self._resident or id_ in self._flights:
                return False
            await self.drop(id_)
            return True

        if self._leases.epoch_of(id_):
            task = asyncio.create_task(_quietly(self._leases.give_up(id_, closed)))
            self._giving_up.add(task)
            task.add_done_callback(self._giving_up.discard)

    def _retire(self, id_: str) -> None:
        resident = self._resident.pop(id_)
        resident.collection.refuse()
        resident.collection.on_resized = lambda _delta: None
        self._size_bytes -= resident.collection.size_bytes
        self._freed_bytes += resident.collection.size_bytes
        closing = asyncio.create_task(_close(resident, self._closing.get(id_)))
        self._closing[id_] = closing
        closing.add_done_callback(lambda done: self._closed(id_, done))

    def _closed(self, id_: str, closing: asyncio.Task[None]) -> None:
        if self._closing.get(id_) is closing:
            del self._closing[id_]
        if self._freed_bytes > self._most // _GIVE_BACK_SHARE:
            self._freed_bytes = 0
            self._give_back()


def _serves(resident: Resident, descriptor: Descriptor) -> bool:
    """Whether what is open is what is durable, with the metadata index that is wanted now."""
    collection = resident.collection
    return collection.usable and collection.state.columns.indexed == descriptor.indexed


async def _as_it_is(descriptor: Descriptor) -> Descriptor:
    return descriptor


async def _quietly(giving_up: Awaitable[None]) -> None:
    # What cannot be given back now stays held, and is used again by whoever asks here.
    with contextlib.suppress(SealcombError):
        await giving_up


def _seen(done: asyncio.Task[Resident]) -> None:
    # An error is not lost where every waiter has gone: the next call meets it again.
    if not done.cancelled():
        done.exception()


async def _close(resident: Resident, before: asyncio.Task[None] | None) -> None:
    if before is not None:
        await asyncio.wait([before])
    await resident.keeper.close()
    await resident.collection.close()
