"""Makes a collection of points that arrive piece by piece: all of it, or nothing.

The points are gathered in memory, under the limits of collection and account, and written as a first
snapshot. The row that makes the collection exist is the last thing that is written, with a head that names
that snapshot; until then nobody sees anything, and what a crash leaves is removed at a later start. Of
several replicas none removes what another one still makes: it is named after its maker, whose row is refused
once it was found dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from services.common.context import current_account
from services.common.datakeys import DataKeys
from services.common.errors import SealcombError
from services.common.objects import ObjectStore
from services.common.sealing import DataKey
from services.vectorstore import quotas
from services.vectorstore.catalog import CATALOG, COLLECTION, Catalog, Descriptor, ResourceKeys
from services.vectorstore.layout import Layout
from services.vectorstore.leases import Leases
from services.vectorstore.log import NO_HASH, Head, Scope, seal_head
from services.vectorstore.manifest import Moment
from services.vectorstore.metadata import Fields
from services.vectorstore.operations import UpsertPoints
from services.vectorstore.places import Places
from services.vectorstore.points import PointState
from services.vectorstore.quotas import Caps, Usage, Usages
from services.vectorstore.snapshot import Wish, Writer, Written, discard_old
from services.vectorstore.store import LeasesLost, Store
from services.vectorstore.writing import size_of, too_many_fields

_T = TypeVar("_T")
# Each holds a collection in memory that no budget counts yet.
_AT_ONCE_MAX = 2
_ACCOUNT_AT_ONCE_MAX = 1
_LSN = 1


@dataclass(slots=True)
class Importer:
    """Makes collections of the current call's account."""

    store: Store
    objects: ObjectStore
    keys: DataKeys
    resources: ResourceKeys
    catalog: Catalog
    workers: Executor
    caps: Caps
    usages: Usages
    leases: Leases
    places: Places = field(default_factory=lambda: Places("imports", _AT_ONCE_MAX, _ACCOUNT_AT_ONCE_MAX))

    async def begin(self, wanted: Descriptor) -> Import:
        """Begins a collection; its name must be free, and is taken only at the end."""
        account = current_account()
        catalog_key = await self.keys.current(CATALOG, CATALOG)
        made = await self.catalog.draft(wanted)
        usage = self.usages.of(account)
        if usage is None:
            usage = self.usages.begin(account, await self.in_thread(lambda: self.store.usage(account)))
        return Import(self, made, catalog_key, usage)

    async def in_thread(self, function: Callable[[], _T]) -> _T:
        """Runs what blocks."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function)


class Import:
    """One collection on its way. Whether or not it was finished, `close` it."""

    def __init__(self, importer: Importer, made: Descriptor, catalog_key: DataKey, usage: Usage) -> None:
        self.descriptor = made
        self._importer = importer
        self._catalog_key = catalog_key
        self._usage = usage
        self._state = PointState(made.dimension, made.metric, made.indexed)
        self._stop = threading.Event()
        self._finishing: asyncio.Task[Descriptor] | None = None

    @property
    def points(self) -> int:
        """Points that have arrived."""
        return self._state.points

    def add(self, operation: UpsertPoints, fields: Sequence[Fields]) -> None:
        """Takes points. Raises what an upsert of them would raise."""
        state, size = self._state, size_of(operation, self.descriptor.dimension)
        there, more = (state.points, state.size_bytes), (len(operation.ids), size)
        quotas.check(self._importer.caps, self._usage, there, more)
        refused = state.columns.too_many(fields)
        if refused:
            raise too_many_fields(f"points[{refused[0]}].metadata")
        state.apply(operation)
        # Counted as it comes, for what the account writes meanwhile.
        self._usage.set(self.descriptor.id, state.points, state.size_bytes)

    async def finish(self) -> Descriptor:
        """Writes the collection and makes it visible; once begun it ends, also for a caller that leaves."""
        self._finishing = asyncio.create_task(self._finish())
        return await asyncio.shield(self._finishing)

    async def close(self) -> None:
        """Removes what did not become a collection; what cannot be removed now goes at the next start."""
        finishing = self._finishing
        if finishing is not None:
            # Only then is known what is to be removed.
            await asyncio.wait([finishing])
            if not finishing.cancelled() and finishing.exception() is None:
                return
        importer, made = self._importer, self.descriptor
        self._stop.set()
        self._usage.forget(made.id)
        with contextlib.suppress(SealcombError):
            await importer.in_thread(
                lambda: discard_old(importer.store, importer.objects, made.id, 0, 0, Layout())
            )
        with contextlib.suppress(SealcombError):
            await importer.resources.destroy_collection(made.id)

    async def _finish(self) -> Descriptor:
        importer, made = self._importer, self.descriptor
        scope = Scope(made.account, made.id)
        # It may have been turned off meanwhile.
        key = await importer.keys.current(made.id, COLLECTION)
        maker = importer.leases.replica
        writer = Writer(importer.store, importer.objects, key, scope, 0, self._stop, maker)
        moment = Moment(False, made.dimension, made.metric, _LSN, NO_HASH, self._state.next_number)

        def write() -> Written:
            return writer.write(moment, self._state.capture(), Layout(), Wish())

        written = await importer.in_thread(write)
        head = seal_head(key, scope, Head(_LSN, NO_HASH, _LSN, written.digest))
        extent = (self._state.points, self._state.size_bytes)
        try:
            await importer.catalog.add(self._catalog_key, made, head, _LSN, extent, maker)
        except LeasesLost:
            # Whoever found this replica dead may have removed what was noted before all of it was written.
            await importer.in_thread(writer.withdraw)
            raise
        return made
