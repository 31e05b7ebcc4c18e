"""The log of a collection: sealed records in a hash chain, made durable in groups.

A record is the hash of the chain so far (32 bytes) and operations (operations.py), sealed as
Identity(account, collection, "log", version=lsn). Record n moves the chain to
SHA-256(chain || sealed record). The head says where the chain ends, and which snapshot holds its beginning:

    u8 version (1), u64 lsn, 32 chain, u64 snapshot lsn (0: none), 32 SHA-256 of the snapshot's object

little-endian, sealed as Identity(account, collection, "head", version=lsn). So a record that is dropped,
doubled, moved, taken from another collection or put back from an older time is noticed; what is not
noticed is the whole database put back with all its heads (docs/vectorstore.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.common.errors import Aborted, DataLoss, SealcombError, Unavailable
from services.common.sealing import DataKey, Identity, key_id_of, open_sealed, seal
from services.vectorstore.operations import Operation, decode, encode
from services.vectorstore.reader import DataDamaged
from services.vectorstore.schema import Append
from services.vectorstore.writability import Writability

_HEAD = struct.Struct("<BQ32sQ32s")
_HEAD_VERSION = 1
_GROUP_MAX = 128
NO_HASH = bytes(32)


class LogBroken(DataLoss):
    """Records are missing, doubled or out of order."""

    reason = "LOG_BROKEN"

    def __init__(self) -> None:
        super().__init__("the collection's log is broken; restore it from a backup")


class RollbackDetected(DataLoss):
    """The log or the snapshot is older than the head says."""

    reason = "ROLLBACK_DETECTED"

    def __init__(self) -> None:
        super().__init__("the collection's data is older than its last write; restore it from a backup")


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a log."""

    lsn: int = 0
    chain: bytes = NO_HASH
    snapshot_lsn: int = 0
    snapshot_digest: bytes = NO_HASH


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose log it is."""

    account: str
    collection: str

    def identity(self, kind: str, version: int) -> Identity:
        """The identity of a sealed thing of this collection."""
        return Identity(self.account, self.collection, kind, version=version)


def seal_head(key: DataKey, scope: Scope, head: Head) -> bytes:
    """The head, sealed."""
    raw = _HEAD.pack(_HEAD_VERSION, head.lsn, head.chain, head.snapshot_lsn, head.snapshot_digest)
    return seal(key, scope.identity("head", head.lsn), raw)


def open_head(keys: Mapping[str, DataKey], scope: Scope, lsn: int, sealed: bytes) -> Head:
    """The head that was sealed at an lsn. Raises OpenFailed."""
    raw = open_sealed(keys[key_id_of(sealed)], scope.identity("head", lsn), sealed)
    try:
        version, own_lsn, chain, snapshot_lsn, digest = _HEAD.unpack(raw)
    except struct.error:
        raise DataDamaged from None
    if version != _HEAD_VERSION or own_lsn != lsn:
        raise DataDamaged
    return Head(lsn, chain, snapshot_lsn, digest)


def seal_record(
    key: DataKey, scope: Scope, head: Head, operations: Sequence[Operation]
) -> tuple[bytes, Head]:
    """The next record, sealed, and the head after it."""
    lsn = head.lsn + 1
    sealed = seal(key, scope.identity("log", lsn), head.chain + encode(operations))
    return sealed, replace(head, lsn=lsn, chain=_link(head.chain, sealed))


def open_records(
    keys: Mapping[str, DataKey],
    scope: Scope,
    start: Head,
    end: Head,
    records: Iterable[tuple[int, bytes]],
    dimension: int,
) -> list[list[Operation]]:
    """The operations of the records after `start` up to `end`, in order.

    Raises OpenFailed, LogBroken or RollbackDetected unless they are exactly the ones that were written.
    """
    opened = []
    lsn, chain = start.lsn, start.chain
    for record_lsn, sealed in records:
        lsn += 1
        if record_lsn != lsn or lsn > end.lsn:
            raise LogBroken
        raw = open_sealed(keys[key_id_of(sealed)], scope.identity("log", lsn), sealed)
        if raw[: len(chain)] != chain:
            raise LogBroken
        opened.append(decode(memoryview(raw)[len(chain) :], dimension))
        chain = _link(chain, sealed)
    if lsn < end.lsn:
        raise RollbackDetected
    if chain != end.chain:
        raise LogBroken
    return opened


def _link(chain: bytes, sealed: bytes) -> bytes:
    return hashlib.sha256(chain + sealed).digest()


class LostPlace(Aborted):
    """Somebody else wrote to the collection, or it is gone; what is in memory is stale."""

    def __init__(self) -> None:
        super().__init__("the collection was changed elsewhere; repeat the call", retry_after_s=0.1)


@dataclass(frozen=True, slots=True)
class _Waiting:
    append: Append
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class Committer:
    """Makes the appends of all collections durable in one thread; those that wait share a commit."""

    def __init__(
        self, append: Callable[[Sequence[Append]], list[bool]], writability: Writability | None = None
    ) -> None:
        self._append = append
        self._writability = writability or Writability()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-commit", daemon=True)
        self._thread.start()

    async def commit(self, append: Append) -> None:
        """Returns once the append is durable. Raises LostPlace, or what the store raised."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.put(_Waiting(append, loop, done))
        await done

    def close(self) -> None:
        """Stops after what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            while len(group) < _GROUP_MAX:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._waiting.put(None)
                    break
                group.append(following)
            self._commit(group)

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            moved = self._append([waiting.append for waiting in group])
        except SealcombError as error:
            self._writability.refused(error.reason)
            failures: list[SealcombError | None] = [error] * len(group)
        except Exception:  # noqa: BLE001  (the outermost loop of a worker: its waiters must not wait for ever)
            self._writability.refused("STORAGE_FAILED")
            failures = [Unavailable("the storage failed; try again", reason="STORAGE_FAILED")] * len(group)
        else:
            self._writability.taken()
            failures = [None if there else LostPlace() for there in moved]
        for waiting, failure in zip(group, failures, strict=True):
            waiting.loop.call_soon_threadsafe(_settle, waiting.done, failure)


def _settle(done: asyncio.Future[None], failure: SealcombError | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
