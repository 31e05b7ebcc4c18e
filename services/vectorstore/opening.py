"""Opening a collection: its newest snapshot, then the log that came after it.

Everything is checked against the sealed head before it is used: the snapshot must be the one that
the head names, and the log must lead from it to the head without a gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from services.common.datakeys import DataKeys
from services.common.errors import NotFound
from services.common.objects import ObjectStore
from services.common.sealing import DataKey, OpenFailed, key_id_of
from services.vectorstore import whole
from services.vectorstore.catalog import COLLECTION, Descriptor, no_such_collection
from services.vectorstore.collection import Collection, Parts, Tail
from services.vectorstore.layout import Layout
from services.vectorstore.leases import Leases
from services.vectorstore.log import Head, LogBroken, LostPlace, Scope, open_head, open_records
from services.vectorstore.manifest import decode
from services.vectorstore.parts import SnapshotBroken, open_object
from services.vectorstore.quotas import Usages
from services.vectorstore.reader import DataDamaged
from services.vectorstore.schema import SnapshotRow
from services.vectorstore.segments import new_state
from services.vectorstore.snapshot import read_parts
from services.vectorstore.state import State
from services.vectorstore.store import Store, Stored


@dataclass(frozen=True, slots=True)
class Opened:
    """A collection, what is stored of it, and whether a crash left objects that nobody needs."""

    collection: Collection
    layout: Layout
    leftovers: bool


@dataclass(frozen=True, slots=True)
class _Built:
    state: State
    head: Head
    tail: Tail
    layout: Layout


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens collections of the current call's account."""

    store: Store
    objects: ObjectStore
    keys: DataKeys
    workers: Executor
    parts: Parts
    usages: Usages
    leases: Leases

    async def open(self, descriptor: Descriptor) -> Opened:
        """Opens a collection. Raises DataLoss if what is stored is not what was written."""
        loop = asyncio.get_running_loop()
        account = descriptor.account
        usage = self.usages.of(account)
        if usage is None:
            stored_usage = await loop.run_in_executor(self.workers, self.store.usage, account)
            usage = self.usages.begin(account, stored_usage)
        stored = await loop.run_in_executor(self.workers, self.store.read, account, descriptor.id)
        if stored is None:
            raise no_such_collection()
        row = stored.row
        held = self.leases.epoch_of(descriptor.id)
        if held is None or (held and held != row.epoch):
            # Somebody else took it meanwhile: to write in its epoch would be to write as it.
            raise LostPlace
        named = {key_id_of(row.head), *(key_id_of(sealed) for _lsn, sealed in stored.records)}
        named |= {snapshot.key_id for snapshot in stored.snapshots} | {part.key_id for part in stored.parts}
        # By id, since data that was sealed before a rotation names an older key.
        try:
            keys = {key_id: await self.keys.by_id(descriptor.id, COLLECTION, key_id) for key_id in named}
        except NotFound:
            # The ids are not authenticated yet: one that keyvault does not know was never written here.
            raise OpenFailed from None
        built = await loop.run_in_executor(self.workers, self._build, descriptor, stored, keys)
        scope = Scope(account, descriptor.id)
        collection = Collection(scope, row.epoch, built.state, built.head, built.tail, self.parts, usage)
        needed = {part.name for part in built.layout.parts}
        leftovers = any(part.name not in needed for part in stored.parts) or any(
            snapshot.lsn != built.head.snapshot_lsn for snapshot in stored.snapshots
        )
        return Opened(collection, built.layout, leftovers)

    def _build(self, descriptor: Descriptor, stored: Stored, keys: Mapping[str, DataKey]) -> _Built:
        scope = Scope(descriptor.account, descriptor.id)
        records = stored.records
        head = open_head(keys, scope, stored.row.head_lsn, stored.row.head)
        start, state, layout = self._start(descriptor, scope, head, stored.snapshots, keys)
        if records and records[0][0] <= start.lsn:
            raise LogBroken
        for operations in open_records(keys, scope, start, head, records, descriptor.dimension):
            for operation in operations:
                state.apply(operation)
        deletions = state.index.dead > 0 or layout.gone > 0
        tail = Tail(len(records), sum(len(sealed) for _lsn, sealed in records), deletions)
        return _Built(state, head, tail, layout)

    def _start(
        self,
        descriptor: Descriptor,
        scope: Scope,
        head: Head,
        snapshots: Sequence[SnapshotRow],
        keys: Mapping[str, DataKey],
    ) -> tuple[Head, State, Layout]:
        text = bool(descriptor.embedder)
        if not head.snapshot_lsn:
            state = new_state(text, descriptor.dimension, descriptor.metric, descriptor.indexed)
            return Head(), state, Layout()
        named = [snapshot for snapshot in snapshots if snapshot.lsn == head.snapshot_lsn]
        if not named:
            raise SnapshotBroken
        key, identity = keys[named[0].key_id], scope.identity("snapshot", head.snapshot_lsn)
        sealed = self.objects.stream(named[0].object_key)
        plaintext = open_object(key, identity, head.snapshot_digest, sealed)
        if plaintext[: len(whole.MAGIC)] == whole.MAGIC:
            # The next snapshot is written in parts.
            moment, state = whole.load(plaintext, descriptor.indexed)
            layout = Layout()
        else:
            manifest = decode(plaintext)
            moment = manifest.moment
            state, layout = read_parts(self.objects, keys, scope, manifest, descriptor.indexed)
        if (moment.text, moment.dimension, moment.metric, moment.lsn) != (
            text,
            descriptor.dimension,
            descriptor.metric,
            head.snapshot_lsn,
        ):
            raise DataDamaged
        return Head(moment.lsn, moment.chain), state, layout
