"""The parts of one vectorstore process, put together: what main serves and what key events act on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import structlog

from services.common.clock import Clock
from services.common.database import database_id, migrate, open_engine
from services.common.datakeys import TTL_S, AgedKeyPeer, DataKeys, KeySource
from services.common.errors import NotFound
from services.common.objects import ObjectStore
from services.common.process import give_memory_back
from services.vectorstore.catalog import Catalog, ResourceKeys
from services.vectorstore.collection import Parts
from services.vectorstore.holders.store import HolderStore
from services.vectorstore.importing import Importer
from services.vectorstore.layout import Layout
from services.vectorstore.leases import HeldElsewhere, SharedLeases, SoleHolder
from services.vectorstore.log import Committer
from services.vectorstore.opening import Opener
from services.vectorstore.quotas import Caps, Usages
from services.vectorstore.resealing import Resealer
from services.vectorstore.residency import Residency
from services.vectorstore.searching import Finder
from services.vectorstore.snapshot import discard_old
from services.vectorstore.store import Store
from services.vectorstore.upkeep import Upkeep
from services.vectorstore.writability import Writability

_log = structlog.get_logger("vectorstore")
_WORKERS = 2
# With all other threads that use the database no more than its pool has connections: who waits for one could
# wait for longer than a lease.
_SQL_WORKERS = 5
_T = TypeVar("_T")


class KeyPeer(KeySource, ResourceKeys, AgedKeyPeer, Protocol):
    """Keyvault, or its twin in tests."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may hold, and when it tidies up."""

    resident_bytes_max: int = 2 * 1024**3
    caps: Caps = field(default_factory=Caps)
    collections_per_account_max: int = 1000
    snapshot_log_bytes: int = 8 * 1024**2
    snapshot_log_records: int = 2000
    erase_after_s: float = 600.0
    key_ttl_s: float = TTL_S
    lease_s: float = 4.0


class Node:
    """One process's store, catalog and open collections."""

    def __init__(
        self, database_url: str, objects: ObjectStore, peer: KeyPeer, clock: Clock, limits: Limits
    ) -> None:
        self._engine = open_engine(database_url)
        migrate(self._engine, "services.vectorstore")
        # Names this database among all; its objects belong to it.
        self.database_id = database_id(self._engine)
        self.store = Store(self._engine)
        self._objects = objects
        # Milliseconds each: openings, large seals, text analysis, SQL of a file.
        self.workers = ThreadPoolExecutor(_WORKERS, "worker")
        # Threads that wait for a server's answers need no core.
        self._sql = self.workers if self.store.is_local else ThreadPoolExecutor(_SQL_WORKERS, "sql")
        self._searchers = ThreadPoolExecutor(_WORKERS, "search")
        self.finder = Finder(self._searchers)
        # Seconds each; one at a time, so that queries keep a core.
        self._builders = ThreadPoolExecutor(1, "builder")
        self.writability = Writability()
        self.committer = Committer(self.store.append, self.writability)
        self.keys = DataKeys(peer, clock, limits.key_ttl_s)
        upkeep = Upkeep(
            self.store,
            objects,
            self._builders,
            limits.snapshot_log_bytes,
            limits.snapshot_log_records,
            limits.erase_after_s,
        )
        self._usages = Usages()
        self.leases: SoleHolder | SharedLeases = SoleHolder()
        if not self.store.is_local:
            self.leases = SharedLeases(HolderStore(self._engine), self._sql, clock, limits.lease_s)
        parts = Parts(self.committer, self.workers, limits.caps)
        opener = Opener(self.store, objects, self.keys, self.workers, parts, self._usages, self.leases)
        self.residency = Residency(
            opener,
            self.keys,
            upkeep,
            self.leases,
            limits.resident_bytes_max,
            lambda: self.workers.submit(give_memory_back),
        )
        self.catalog = Catalog(
            self.store, self.keys, peer, self._sql, clock, limits.collections_per_account_max
        )
        self.importer = Importer(
            self.store,
            objects,
            self.keys,
            peer,
            self.catalog,
            self._builders,
            limits.caps,
            self._usages,
            self.leases,
        )
        if isinstance(self.leases, SharedLeases):
            self.leases.on_lost = self.residency.drop_all
            self.residency.reread = self.catalog.reread
        self.resealer = Resealer(self.store, self.residency, self.keys, peer, self.workers, clock)

    async def reseal(self, collection: str) -> None:
        """Seals a collection of the current account under its newest data key; its holder does."""
        with contextlib.suppress(HeldElsewhere):
            await self.resealer.reseal(await self.catalog.by_id(collection))

    async def lock_account(self, account: str) -> None:
        """Forgets what the account's keys opened."""
        self.keys.drop_account(account)
        self.catalog.forget_account(account)
        self.residency.drop_account(account)

    async def lock_all(self) -> None:
        """Forgets what any key opened."""
        self.keys.drop_all()
        self.catalog.forget_all()
        self.residency.drop_all()

    async def purge(self, account: str, collection: str) -> None:
        """Removes what is left of a collection whose keys are destroyed; no error if nothing is.

        Raises HeldElsewhere where another replica has it open, and removes it.
        """
        self.keys.drop_resource(account, collection)
        self.catalog.forget_account(account)
        with contextlib.suppress(NotFound):
            if self.leases.epoch_of(collection) is None:
                await self.leases.claim(account, collection)
        await self.residency.drop(collection)
        usage = self._usages.of(account)
        if usage is not None:
            usage.forget(collection)
        await self._in_thread(lambda: self._remove(account, collection))

    async def purge_account(self, account: str) -> None:
        """Removes what is left of an account whose keys are destroyed."""
        await self.lock_account(account)
        for _account, collection in await self._in_thread(lambda: self.store.owned(account)):
            with contextlib.suppress(HeldElsewhere):
                await self.purge(account, collection)

    async def remove_abandoned(self) -> None:
        """Removes what was written for collections that nobody will make, since their makers have ended."""
        for collection, maker in (await self._in_thread(self.store.orphans)).items():
            if await self.leases.is_over(maker):
                await self._in_thread(
                    partial(discard_old, self.store, self._objects, collection, 0, 0, Layout())
                )

    async def hand_over(self) -> None:
        """Gives what this replica holds to the others, if there are any, while it still answers."""
        if isinstance(self.leases, SharedLeases) and await self.leases.leave():
            await self.residency.hand_over()
            # The others may believe for so long that calls belong here; one that came at the end would fail.
            await asyncio.sleep(self.leases.lease_s)

    async def close(self) -> None:
        """Ends what is open; what was acknowledged is durable already."""
        await self.residency.close()
        if isinstance(self.leases, SharedLeases):
            await self.leases.close()
        self.committer.close()
        self.workers.shutdown()
        self._sql.shutdown()
        self._builders.shutdown()
        self._searchers.shutdown()
        self._engine.dispose()

    def _remove(self, account: str, collection: str) -> None:
        if self.store.by_id(account, collection) is None:
            return
        # Objects first: one that cannot be removed now is still noted at the next attempt.
        removed = {snapshot.object_key for snapshot in self.store.snapshots(collection)}
        removed |= {part.object_key for part in self.store.parts(collection)}
        for object_key in removed:
            self._objects.delete(object_key)
        for object_key in self.store.delete(account, collection):
            if object_key not in removed:
                self._objects.delete(object_key)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.workers, function)
