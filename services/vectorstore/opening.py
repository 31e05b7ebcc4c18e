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
from services.vectorstore.catalog import COLLECTION, Descriptor, no_such_collection
from services.vectorstore.collection import Collection, Parts, Tail
from services.vectorstore.log import Head, LogBroken, Scope, open_head, open_records
from services.vectorstore.quotas import Usages
from services.vectorstore.reader import DataDamaged
from services.vectorstore.snapshot import SnapshotBroken, load, new_state, open_snapshot
from services.vectorstore.state import State
from services.vectorstore.store import CollectionRow, SnapshotRow, Store

_Records = Sequence[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A collection, and how large its snapshot is."""

    collection: Collection
    snapshot_bytes: int


@dataclass(frozen=True, slots=True)
class _Built:
    state: State
    head: Head
    tail: Tail
    snapshot_bytes: int


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens collections of the current call's account."""

    store: Store
    objects: ObjectStore
    keys: DataKeys
    workers: Executor
    parts: Parts
    usages: Usages

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
        row, snapshots, records = stored
        named = {key_id_of(row.head), *(key_id_of(sealed) for _lsn, sealed in records)}
        named |= {snapshot.key_id for snapshot in snapshots}
        # By id, since data that was sealed before a rotation names an older key.
        try:
            keys = {key_id: await self.keys.by_id(descriptor.id, COLLECTION, key_id) for key_id in named}
        except NotFound:
            # The ids are not authenticated yet: one that keyvault does not know was never written here.
            raise OpenFailed from None
        built = await loop.run_in_executor(
            self.workers, self._build, descriptor, row, snapshots, records, keys
        )
        scope = Scope(account, descriptor.id)
        collection = Collection(scope, row.epoch, built.state, built.head, built.tail, self.parts, usage)
        return Opened(collection, built.snapshot_bytes)

    def _build(
        self,
        descriptor: Descriptor,
        row: CollectionRow,
        snapshots: Sequence[SnapshotRow],
        records: _Records,
        keys: Mapping[str, DataKey],
    ) -> _Built:
        scope = Scope(descriptor.account, descriptor.id)
        head = open_head(keys, scope, row.head_lsn, row.head)
        start, state, size = self._start(descriptor, scope, head, snapshots, keys)
        if records and records[0][0] <= start.lsn:
            raise LogBroken
        for operations in open_records(keys, scope, start, head, records, descriptor.dimension):
            for operation in operations:
                state.apply(operation)
        tail = Tail(len(records), sum(len(sealed) for _lsn, sealed in records), state.index.dead > 0)
        return _Built(state, head, tail, size)

    def _start(
        self,
        descriptor: Descriptor,
        scope: Scope,
        head: Head,
        snapshots: Sequence[SnapshotRow],
        keys: Mapping[str, DataKey],
    ) -> tuple[Head, State, int]:
        text = bool(descriptor.embedder)
        if not head.snapshot_lsn:
            state = new_state(text, descriptor.dimension, descriptor.metric, descriptor.indexed)
            return Head(), state, 0
        named = [snapshot for snapshot in snapshots if snapshot.lsn == head.snapshot_lsn]
        if not named:
            raise SnapshotBroken
        try:
            parts = self.objects.stream(named[0].object_key)
            plaintext = open_snapshot(
                keys[named[0].key_id], scope, head.snapshot_lsn, head.snapshot_digest, parts
            )
        except NotFound:
            raise SnapshotBroken from None
        moment, state = load(plaintext, descriptor.indexed)
        if (moment.text, moment.dimension, moment.metric, moment.lsn) != (
            text,
            descriptor.dimension,
            descriptor.metric,
            head.snapshot_lsn,
        ):
            raise DataDamaged
        return Head(moment.lsn, moment.chain), state, len(plaintext)
