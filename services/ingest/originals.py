"""The sealed originals of documents, as objects `<account>/<collection id>/<document id>`.

An original is written before the record that names it and deleted after it, so a record always
has its original. What lies between is remembered in SQL first: an original whose record never came,
or went, is found by `sweep` and removed. The row says from when on nobody can commit the record any
more (the permit or context has expired), so a sweep never races with an upload.

This module must never write a byte that is not sealed, and never hand out an original that was not
authenticated to its end.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import structlog

from services.common import ids
from services.common.clock import Clock
from services.common.datakeys import DataKeys
from services.common.errors import Kind, NotFound, SealcombError
from services.common.objects import ObjectStore
from services.common.sealing import HEADER_BYTES, DataKey, Identity, Opener, OpenFailed, Sealer, key_id_of
from services.ingest.store import Unsettled

_log = structlog.get_logger("originals")

PURPOSE = "documents"
_KIND = "original"
# Between the expiry of a permit and the end of the last call that was made with it.
_SETTLE_MARGIN_S = 120.0
_SWEEP_EVERY_S = 60.0
_SWEPT_MAX = 10_000
_KEEP_S = 0.25
_ACCOUNTS_MAX = 10_000


class UnsettledStore(Protocol):
    """Where unsettled originals and removals are remembered; blocks."""

    def add_unsettled(self, row: Unsettled) -> None:
        """Remembers an original, durably."""

    def remove_unsettled(self, *object_keys: str) -> None:
        """Forgets settled originals."""

    def unsettled_before(self, account: str, collection_id: str, now_ms: int) -> list[Unsettled]:
        """What of a collection can be settled now."""

    def add_removal(self, prefix: str) -> None:
        """Remembers a removal, durably."""

    def finish_removal(self, prefix: str, account: str, collection_id: str) -> None:
        """Forgets a removal and what was unsettled below it."""

    def removals(self) -> list[str]:
        """Removals begun and not finished."""


class Originals:
    """Writes, reads and removes originals."""

    def __init__(self, objects: ObjectStore, keys: DataKeys, store: UnsettledStore, clock: Clock) -> None:
        self._objects = objects
        self._keys = keys
        self._store = store
        self._clock = clock
        self._kept: list[str] = []
        self._keeping: asyncio.Task[None] | None = None
        # What is being settled right now, under the lock.
        self._settling: frozenset[str] = frozenset()
        self._settle_lock = asyncio.Lock()
        self._swept: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._resealing = asyncio.Semaphore(1)
        self._drops: dict[str, int] = {}
        self._drops_of_all = 0

    async def write(
        self,
        account: str,
        collection_id: str,
        document_id: str,
        parts: Sequence[bytes],
        commit_within_s: float,
    ) -> str:
        """Seals and stores an original, unsettled until `keep` or `discard`; its object key."""
        key = await self._keys.current(collection_id, PURPOSE)
        row = self._unsettled(account, collection_id, document_id, commit_within_s, "")
        identity = Identity(account, collection_id, _KIND, document_id)

        def store() -> None:
            self._store.add_unsettled(row)
            self._objects.put(row.object_key, _sealed(key, identity, parts))

        await asyncio.to_thread(store)
        return row.object_key

    async def put(self, account: str, collection_id: str, object_id: str, parts: Sequence[bytes]) -> None:
        """Seals and stores an original that its caller remembers already, under an id of its own."""
        key = await self._keys.current(collection_id, PURPOSE)
        identity = Identity(account, collection_id, _KIND, object_id)
        object_key = f"{account}/{collection_id}/{object_id}"
        await asyncio.to_thread(self._objects.put, object_key, _sealed(key, identity, parts))

    async def unsettle(
        self,
        account: str,
        collection_id: str,
        document_id: str,
        commit_within_s: float,
        object_key: str = "",
    ) -> str:
        """Remembers that an original's record is about to come or to go; its object key.

        The key is the document's, unless it is given: versions of one document have one object each.
        """
        row = self._unsettled(account, collection_id, document_id, commit_within_s, object_key)
        # What is about to be settled, or just is, must not take this row with it.
        if row.object_key in self._kept:
            self._kept.remove(row.object_key)
        if row.object_key in self._settling:
            async with self._settle_lock:
                pass
        await asyncio.to_thread(self._store.add_unsettled, row)
        return row.object_key

    def _unsettled(
        self, account: str, collection_id: str, document_id: str, commit_within_s: float, object_key: str
    ) -> Unsettled:
        object_key = object_key or f"{account}/{collection_id}/{document_id}"
        settle_after_ms = int((self._clock.now_s() + commit_within_s + _SETTLE_MARGIN_S) * 1000)
        return Unsettled(object_key, account, collection_id, document_id, settle_after_ms)

    async def keep(self, object_key: str) -> None:
        """Settles an original whose record is there."""
        await asyncio.to_thread(self._store.remove_unsettled, object_key)

    def keep_soon(self, object_key: str) -> None:
        """The same, together with what else is settled within a moment: many uploads share a transaction.

        What a crash leaves of it stays unsettled, and a sweep finds its record.
        """
        self._kept.append(object_key)
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep_in_turn())

    async def settle(self) -> None:
        """Finishes what `keep_soon` has begun; for the end of the service."""
        if self._keeping is not None:
            self._keeping.cancel()
        await self._keep_all()

    async def _keep_in_turn(self) -> None:
        while self._kept:
            await asyncio.sleep(_KEEP_S)
            await self._keep_all()

    async def _keep_all(self) -> None:
        async with self._settle_lock:
            kept, self._kept = self._kept, []
            self._settling = frozenset(kept)
            try:
                await asyncio.to_thread(self._store.remove_unsettled, *kept)
            except SealcombError as error:
                _log.info("settled originals are still remembered", count=len(kept), reason=error.reason)
            finally:
                self._settling = frozenset()

    async def discard(self, object_key: str) -> None:
        """Removes an original that no record names."""
        await asyncio.to_thread(self._objects.delete, object_key)
        await asyncio.to_thread(self._store.remove_unsettled, object_key)

    async def read(
        self, account: str, collection_id: str, object_key: str, size_bytes: int
    ) -> AsyncIterator[bytes]:
        """The original in parts; the last one only after all of it proved whole.

        Raises OpenFailed for an object that is missing, changed or of another length. A key
        that is disabled meanwhile stops the reading.
        """
        folder, _, document_id = object_key.rpartition("/")
        if folder != f"{account}/{collection_id}" or not ids.is_id(document_id):
            raise OpenFailed
        sealed = self._objects.stream(object_key)
        try:
            head = await asyncio.to_thread(next, sealed, b"")
        except NotFound:
            # Its record names it, so that it is gone is a loss.
            raise OpenFailed from None
        if len(head) < HEADER_BYTES:
            raise OpenFailed
        drops = self._drops_of(account)
        key = await self._key_of(collection_id, head)
        opener = Opener(key, Identity(account, collection_id, _KIND, document_id))
        held, size = b"", 0
        while head:
            plain = await asyncio.to_thread(opener.update, head)
            size += len(plain)
            if plain:
                if held:
                    yield held
                held = plain
            if drops != self._drops_of(account):
                drops = self._drops_of(account)
                await self._keys.by_id(collection_id, PURPOSE, key.id)
            head = await asyncio.to_thread(next, sealed, b"")
        tail = opener.finalize()
        if size + len(tail) != size_bytes:
            raise OpenFailed
        for part in (held, tail):
            if part:
                yield part

    async def _key_of(self, collection_id: str, head: bytes) -> DataKey:
        try:
            return await self._keys.by_id(collection_id, PURPOSE, key_id_of(head))
        except SealcombError as error:
            if error.kind is Kind.NOT_FOUND:
                # The object names a key that is none of its collection's: changed, or of a destroyed one.
                raise OpenFailed from None
            raise

    def keys_dropped(self, account: str) -> None:
        """Makes readings of the account ask for their key again; an empty account means all."""
        if account and len(self._drops) < _ACCOUNTS_MAX:
            self._drops[account] = self._drops.get(account, 0) + 1
        else:
            self._drops.clear()
            self._drops_of_all += 1

    async def object_keys(self, account: str, collection_id: str) -> list[str]:
        """The keys of a collection's objects, in order."""
        return await asyncio.to_thread(self._objects.list, f"{account}/{collection_id}/")

    async def sealing_key(self, object_key: str) -> str:
        """The data key that an object names; empty for one that is gone."""
        head = await self._head(self._objects.stream(object_key))
        return key_id_of(head) if head else ""

    async def reseal(self, account: str, collection_id: str, object_key: str, key: DataKey) -> None:
        """Seals an original anew under a key, once it was read to its end and proved whole.

        One that is gone meanwhile is left alone.
        """
        document_id = object_key.rpartition("/")[2]
        identity = Identity(account, collection_id, _KIND, document_id)
        # One at a time: an original is in memory while it is sealed anew.
        async with self._resealing:
            sealed = self._objects.stream(object_key)
            head = await self._head(sealed)
            if not head:
                return
            opener = Opener(await self._key_of(collection_id, head), identity)
            parts = []
            while head:
                parts.append(await asyncio.to_thread(opener.update, head))
                head = await asyncio.to_thread(next, sealed, b"")
            parts.append(opener.finalize())
            if not await self._head(self._objects.stream(object_key)):
                # Deleted while it was read: it must not come back.
                return
            await asyncio.to_thread(self._objects.put, object_key, _sealed(key, identity, parts))

    async def _head(self, sealed: Iterator[bytes]) -> bytes:
        try:
            head = await asyncio.to_thread(next, sealed, b"")
        except NotFound:
            return b""
        if len(head) < HEADER_BYTES:
            raise OpenFailed
        return head

    async def sweep(self, account: str, collection_id: str, exists: Callable[[str], Awaitable[bool]]) -> int:
        """Settles what an interruption left in a collection; how many originals were removed.

        `exists` says whether a document has a record. At most once a minute for a collection.
        """
        if not self._sweep_is_due(account, collection_id):
            return 0
        now_ms = int(self._clock.now_s() * 1000)
        removed = 0
        for row in await asyncio.to_thread(self._store.unsettled_before, account, collection_id, now_ms):
            if await exists(row.document_id):
                await self.keep(row.object_key)
            else:
                await self.discard(row.object_key)
                removed += 1
        return removed

    async def remove_all(self, account: str, collection_id: str = "") -> None:
        """Removes every original of a collection or account whose keys are destroyed."""
        await self._remove_below(f"{account}/{collection_id}/" if collection_id else f"{account}/")

    async def resume_removals(self) -> None:
        """Finishes what an earlier process began."""
        for prefix in await asyncio.to_thread(self._store.removals):
            await self._remove_below(prefix)

    async def _remove_below(self, prefix: str) -> None:
        account, _, collection_id = prefix.strip("/").partition("/")
        keys = await asyncio.to_thread(self._objects.list, prefix)
        if keys:
            await asyncio.to_thread(self._store.add_removal, prefix)
        for object_key in keys:
            await asyncio.to_thread(self._objects.delete, object_key)
        await asyncio.to_thread(self._store.finish_removal, prefix, account, collection_id)

    def _sweep_is_due(self, account: str, collection_id: str) -> bool:
        now = self._clock.monotonic_s()
        last = self._swept.get((account, collection_id))
        if last is not None and now - last < _SWEEP_EVERY_S:
            return False
        self._swept[account, collection_id] = now
        self._swept.move_to_end((account, collection_id))
        if len(self._swept) > _SWEPT_MAX:
            self._swept.popitem(last=False)
        return True

    def _drops_of(self, account: str) -> tuple[int, int]:
        return self._drops_of_all, self._drops.get(account, 0)


def _sealed(key: DataKey, identity: Identity, parts: Sequence[bytes]) -> Iterator[bytes]:
    sealer = Sealer(key, identity)
    for part in parts:
        yield sealer.update(part)
    yield sealer.finalize()
