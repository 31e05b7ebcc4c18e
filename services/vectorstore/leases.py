"""What this replica holds, and how long it may believe so.

With a database of its own (a file) a process holds everything. With a shared one each collection has
at most one holder: the replica that reads and writes it, and that makes its snapshots. A holder believes in
itself by its own steady clock, for less than the database believes in it, counted from before it asked;
so when another may take over, it has stopped. What it may have begun before that is refused at the append, by
the epoch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from services.common import ids
from services.common.clock import Clock
from services.common.errors import NotFound, SealcombError, Unavailable
from services.vectorstore.holders.store import Elsewhere, HolderStore
from services.vectorstore.log import LostPlace
from services.vectorstore.store import LeasesLost

_log = structlog.get_logger("leases")
_held = Gauge("sealcomb_leases_held", "Collections that this replica holds")
_losses = Counter("sealcomb_leases_lost_total", "Times that this replica lost all that it held")
# Of the time that the database believes in it: clocks do not run alike.
_OWN_SHARE = 0.9
_RENEWALS = 4
_WHERE_MAX = 10_000
_T = TypeVar("_T")


class HeldElsewhere(Unavailable):
    """Another replica holds the collection; the call is to be passed on to it."""

    reason = "HELD_ELSEWHERE"

    def __init__(self, collection: str, elsewhere: Elsewhere) -> None:
        super().__init__("another replica holds the collection; try again", retry_after_s=0.2)
        self.collection = collection
        self.elsewhere = elsewhere


class Leases(Protocol):
    """Who holds collections."""

    def epoch_of(self, collection: str) -> int | None:
        """The epoch in which this replica holds a collection; 0 where there are none; None: it does not."""

    async def claim(self, account: str, collection: str) -> bool:
        """Holds a collection from now on; whether it did not before the call. Raises HeldElsewhere."""

    async def give_up(self, collection: str, close: Callable[[], Awaitable[bool]]) -> None:
        """Closes a collection and then gives it back, unless the closing says that it is wanted again."""

    def held(self) -> list[str]:
        """The collections that this replica holds."""

    @property
    def replica(self) -> str:
        """The name of this replica, or of this process."""

    async def is_over(self, replica: str) -> bool:
        """Whether a replica, or a process on the same database, makes nothing any more; "": not known."""


class SoleHolder:
    """The only process of its database: it holds everything."""

    def __init__(self) -> None:
        self.replica = ids.new_id()

    async def is_over(self, replica: str) -> bool:
        """All others are."""
        return replica != self.replica

    def epoch_of(self, collection: str) -> int | None:
        """Always, in whichever epoch."""
        return 0

    async def claim(self, account: str, collection: str) -> bool:
        """Always, since ever."""
        return False

    async def give_up(self, collection: str, close: Callable[[], Awaitable[bool]]) -> None:
        """Nobody else would take it."""

    def held(self) -> list[str]:
        """Nothing that could be given away."""
        return []


class SharedLeases:
    """One of several replicas. All but the renewing runs on the event loop."""

    def __init__(self, store: HolderStore, workers: Executor, clock: Clock, lease_s: float) -> None:
        self._store = store
        self._workers = workers
        self._clock = clock
        self._lease_s = lease_s
        # Called on the event loop when all that was held may be another's.
        self.on_lost: Callable[[], None] = lambda: None
        self._id = ""
        self._address = ""
        # With the name under which this replica held it then.
        self._epochs: dict[str, tuple[str, int]] = {}
        self._where: dict[str, tuple[Elsewhere, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._believed_until_s = 0.0
        self._stopping = threading.Event()
        self._renewing: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, address: str) -> None:
        """Joins the replicas, reached by the others at an address. Raises Unavailable."""
        self._address, self._loop = address, asyncio.get_running_loop()
        await self._in_thread(self._register)
        # A thread of its own: a busy event loop must not cost the leases.
        self._renewing = threading.Thread(target=self._renew, name="leases", daemon=True)
        self._renewing.start()

    async def leave(self) -> bool:
        """Takes nothing more; whether there are others to take what is held."""
        await self._in_thread(self._store.leave, self._id)
        return bool(await self._in_thread(self._store.others, self._id))

    async def close(self) -> None:
        """Leaves the replicas; what is still held is free for others at once."""
        self._stopping.set()
        if self._renewing is not None:
            await asyncio.to_thread(self._renewing.join)
            try:
                await self._in_thread(self._store.remove, self._id)
            except SealcombError as error:
                _log.warning("the replica could not sign off; its time ends", reason=error.reason)

    @property
    def lease_s(self) -> float:
        """How long the database believes in a replica that says nothing."""
        return self._lease_s

    def epoch_of(self, collection: str) -> int | None:
        """See Leases."""
        if self._clock.monotonic_s() >= self._believed_until_s:
            return None
        replica, epoch = self._epochs.get(collection, ("", 0))
        return epoch if replica and replica == self._id else None

    def held(self) -> list[str]:
        """See Leases."""
        return list(self._epochs)

    @property
    def replica(self) -> str:
        """See Leases."""
        return self._id

    async def is_over(self, replica: str) -> bool:
        """See Leases."""
        return bool(replica) and await self._in_thread(self._store.is_over, replica)

    async def claim(self, account: str, collection: str) -> bool:
        """See Leases. Raises Unavailable, and NotFound where there is no such collection any more."""
        if self.epoch_of(collection) is not None:
            return False
        where = self._where.get(collection)
        if where is not None and self._clock.monotonic_s() < where[1]:
            raise HeldElsewhere(collection, where[0])
        async with self._locked(collection):
            if self.epoch_of(collection) is not None:
                # Another call gained it meanwhile: what this one knows of it is from before, too.
                return True
            own = self._id
            if self._clock.monotonic_s() >= self._believed_until_s:
                raise LeasesLost
            found = await self._in_thread(self._store.claim, account, collection, own)
            if isinstance(found, Elsewhere):
                if len(self._where) >= _WHERE_MAX:
                    self._where.clear()
                self._where[collection] = (found, self._clock.monotonic_s() + self._lease_s)
                raise HeldElsewhere(collection, found)
            if found is None:
                raise NotFound("no such collection", reason="COLLECTION_NOT_FOUND")
            if own != self._id:
                raise LostPlace
            self._where.pop(collection, None)
            self._epochs[collection] = (own, found.epoch)
            _held.set(len(self._epochs))
            return found.gained

    async def is_held_by(self, held: HeldElsewhere) -> bool:
        """Whether the database still believes in the holder that a call was passed on to."""
        try:
            return await self._in_thread(self._store.is_held_by, held.collection, held.elsewhere.replica)
        except SealcombError:
            # Nobody can have taken it over meanwhile either.
            return True

    def forget_where(self, collection: str) -> None:
        """Whoever was believed to hold a collection does not; the database is asked again."""
        self._where.pop(collection, None)

    async def give_up(self, collection: str, close: Callable[[], Awaitable[bool]]) -> None:
        """See Leases."""
        async with self._locked(collection):
            held = self._epochs.pop(collection, None)
            if held is None:
                return
            if not await close():
                self._epochs[collection] = held
                return
            _held.set(len(self._epochs))
            await self._in_thread(self._store.release, [collection], self._id)

    def _locked(self, collection: str) -> asyncio.Lock:
        if len(self._locks) >= _WHERE_MAX:
            self._locks = {name: lock for name, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(collection, asyncio.Lock())

    def _register(self) -> None:
        started_s, replica = self._clock.monotonic_s(), ids.new_id()
        self._store.register(replica, self._address, int(self._lease_s * 1e6))
        self._id, self._believed_until_s = replica, started_s + self._lease_s * _OWN_SHARE

    def _renew(self) -> None:
        while not self._stopping.wait(self._lease_s / _RENEWALS):
            try:
                self._renew_once()
                continue
            except SealcombError as error:
                _log.warning("leases cannot be renewed", reason=error.reason)
            except Exception:  # noqa: BLE001  (a replica whose thread had ended would refuse everything for ever)
                _log.exception("leases cannot be renewed")
            if self._clock.monotonic_s() >= self._believed_until_s:
                self._lost()

    def _renew_once(self) -> None:
        started_s = self._clock.monotonic_s()
        if self._store.renew(self._id, int(self._lease_s * 1e6)):
            self._believed_until_s = started_s + self._lease_s * _OWN_SHARE
            return
        self._believed_until_s = 0.0
        self._lost()
        self._register()

    def _lost(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._forget)

    def _forget(self) -> None:
        if self._epochs:
            _log.warning("lost all leases", count=len(self._epochs))
            _losses.inc()
        self._epochs.clear()
        self._where.clear()
        _held.set(0)
        self.on_lost()

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)
