"""One opened collection: its state in memory and the one writer that moves it.

Writes queue in order. The writer takes those that may go together, lets each decide what to do with the
state as it is, seals their operations as one record, and only when the record is durable applies
it and answers. So a reader never sees what is not durable, and a refused write changed nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from services.common.errors import ResourceExhausted, SealcombError, Unavailable
from services.common.sealing import DataKey
from services.vectorstore.log import Committer, Head, Scope, seal_head, seal_record
from services.vectorstore.operations import Operation
from services.vectorstore.quotas import Caps, Usage
from services.vectorstore.schema import Append
from services.vectorstore.state import State

_log = structlog.get_logger("collection")
_Result = TypeVar("_Result")
_QUEUE_MAX = 1000
_QUEUE_BYTES_MAX = 256 * 1024 * 1024
_GROUP_MAX = 256
_GROUP_BYTES_MAX = 8 * 1024 * 1024
# Sealing a large record takes milliseconds, so it leaves the event loop.
_INLINE_BYTES_MAX = 128 * 1024


class CollectionClosed(Unavailable):
    """The collection was closed before the write was begun, so it changed nothing."""

    reason = "COLLECTION_CLOSED"

    def __init__(self) -> None:
        super().__init__("the collection was just closed; try again", retry_after_s=0.1)


@dataclass(frozen=True, slots=True)
class Decision(Generic[_Result]):
    """What a write does, decided against the state just before it.

    `result` makes the answer from what each operation wrote or removed. A snapshot moves the head
    without operations and trims the log.
    """

    operations: Sequence[Operation]
    result: Callable[[Sequence[int]], _Result]
    head: Callable[[Head], Head] | None = None
    trim_to: int = 0


@dataclass(slots=True)
class _Write:
    decide: Callable[[State], Decision[Any]]
    # None where nothing is written.
    key: DataKey | None
    size_bytes: int
    # Depends on the state, so on every write before it being applied.
    alone: bool
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What every opened collection uses."""

    committer: Committer
    # For work of milliseconds to seconds.
    workers: Executor
    caps: Caps


@dataclass(slots=True)
class Tail:
    """How much log a restart would have to read."""

    records: int = 0
    size_bytes: int = 0
    # Something was deleted whose bytes the log or the snapshot still holds.
    deletions: bool = False


class Collection:
    """An opened collection. Everything here runs on the event loop."""

    def __init__(
        self, scope: Scope, epoch: int, state: State, head: Head, tail: Tail, parts: Parts, usage: Usage
    ) -> None:
        self.scope = scope
        self.state = state
        self.head = head
        self.tail = tail
        self.parts = parts
        # Of the whole account.
        self.usage = usage
        # Set by whoever keeps the collection in shape (upkeep.py); called after each applied group.
        self.on_applied: Callable[[DataKey], None] = lambda _key: None
        self.on_resized: Callable[[int], None] = lambda _delta: None
        # Applied operations, for whoever brings another state to the same point.
        self.since: list[Operation] | None = None
        self.size_bytes = state.size_bytes
        usage.set(scope.collection, state.points, self.size_bytes)
        self.epoch = epoch
        self._queue: deque[_Write] = deque()
        self._queued_bytes = 0
        self._drain: asyncio.Task[None] | None = None
        self._closed = False
        self._abandoned = False

    @property
    def usable(self) -> bool:
        """Whether the state is what is durable; if not, open the collection anew."""
        return not self._closed

    async def write(
        self,
        decide: Callable[[State], Decision[_Result]],
        key: DataKey | None,
        *,
        size_bytes: int = 0,
        alone: bool = True,
    ) -> _Result:
        """Performs a write; returns once it is durable and shows. Raises what `decide` or the storage raised.

        `alone` keeps it from sharing a record with writes before it, whose effect `decide` needs to see.
        """
        if self._closed:
            raise CollectionClosed
        if len(self._queue) >= _QUEUE_MAX or self._queued_bytes + size_bytes > _QUEUE_BYTES_MAX:
            raise ResourceExhausted(
                "too many writes wait for this collection; slow down",
                reason="WRITE_QUEUE_FULL",
                retry_after_s=0.5,
            )
        done: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._queue.append(_Write(decide, key, size_bytes, alone, done))
        self._queued_bytes += size_bytes
        if self._drain is None:
            self._drain = asyncio.create_task(self._run())
        # The write goes on if its caller leaves: it may be durable already.
        return await asyncio.shield(done)

    def resize(self) -> None:
        """Takes note of how much memory the state holds now."""
        delta = self.state.size_bytes - self.size_bytes
        self.size_bytes += delta
        self.usage.set(self.scope.collection, self.state.points, self.size_bytes)
        self.on_resized(delta)

    async def at_rest(self, look: Callable[[], _Result]) -> _Result:
        """Runs a function between two writes, when state and head agree; it must not wait."""

        def decide(_state: State) -> Decision[_Result]:
            seen = look()
            return Decision((), lambda _counts: seen)

        return await self.write(decide, None)

    def refuse(self) -> None:
        """Takes no more writes; those that are queued go on."""
        self._closed = True

    async def close(self) -> None:
        """Takes no more writes and waits for those that are queued."""
        self.refuse()
        if self._drain is not None:
            await asyncio.wait([self._drain])

    def abandon(self) -> None:
        """Takes no more writes: what is in memory may not be what is durable."""
        self._closed = self._abandoned = True

    async def _run(self) -> None:
        try:
            while self._queue:
                group = self._next_group()
                if self._abandoned:
                    for write in group:
                        _fail(write, CollectionClosed())
                else:
                    await self._perform(group)
        finally:
            self._drain = None

    def _next_group(self) -> list[_Write]:
        group = [self._queue.popleft()]
        size = group[0].size_bytes
        while self._queue and not self._queue[0].alone and len(group) < _GROUP_MAX:
            size += self._queue[0].size_bytes
            if size > _GROUP_BYTES_MAX:
                break
            group.append(self._queue.popleft())
        self._queued_bytes -= sum(write.size_bytes for write in group)
        return group

    async def _perform(self, group: Sequence[_Write]) -> None:
        decided: list[tuple[_Write, Decision[Any]]] = []
        for write in group:
            try:
                decided.append((write, write.decide(self.state)))
            except SealcombError as error:
                _fail(write, error)
        try:
            await self._commit(decided)
            await self._apply(decided)
        except SealcombError as error:
            # A full disk is known to have changed nothing; after anything else, only the disk knows.
            if error.reason != "STORAGE_FULL":
                self.abandon()
            for write, _decision in decided:
                _fail(write, error)
        except Exception:  # noqa: BLE001  (the outermost loop of a worker)
            _log.exception("write failed", account=self.scope.account, resource=self.scope.collection)
            self.abandon()
            for write, _decision in decided:
                _fail(write, Unavailable("the write failed; read before you repeat it"))

    async def _commit(self, decided: Sequence[tuple[_Write, Decision[Any]]]) -> None:
        operations = [operation for _write, decision in decided for operation in decision.operations]
        moves = [decision for _write, decision in decided if decision.head is not None]
        if not operations and not moves:
            return
        key = _key(decided)
        head, records = self.head, []
        if operations:
            sealed, head = await self._seal(key, operations, sum(write.size_bytes for write, _d in decided))
            records = [(head.lsn, sealed)]
        for move in moves:
            head = move.head(head) if move.head else head
        points, documents = self.state.counts_after(operations)
        append = Append(
            collection=self.scope.collection,
            epoch=self.epoch,
            expected_lsn=self.head.lsn,
            lsn=head.lsn,
            head=seal_head(key, self.scope, head),
            points=points,
            documents=documents,
            size_bytes=self.state.size_bytes + sum(write.size_bytes for write, _decision in decided),
            records=records,
            trim_to=max((move.trim_to for move in moves), default=0),
        )
        await self.parts.committer.commit(append)
        self.head = head
        if moves:
            later = head.lsn - head.snapshot_lsn
            self.tail = Tail(later, deletions=later > 0)
        self.tail.records += len(records)
        self.tail.size_bytes += sum(len(sealed) for _lsn, sealed in records)

    async def _seal(
        self, key: DataKey, operations: Sequence[Operation], size_bytes: int
    ) -> tuple[bytes, Head]:
        if size_bytes <= _INLINE_BYTES_MAX:
            return seal_record(key, self.scope, self.head, operations)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self.parts.workers, seal_record, key, self.scope, self.head, operations
        )

    async def _apply(self, decided: Sequence[tuple[_Write, Decision[Any]]]) -> None:
        applied: list[Operation] = []
        answers = []
        for write, decision in decided:
            counts = []
            for operation in decision.operations:
                counts.append(await self._step(operation))
                applied.append(operation)
                if self.since is not None:
                    self.since.append(operation)
            answers.append((write, decision.result(counts)))
        if applied:
            self.resize()
        for write, answer in answers:
            if not write.done.done():
                write.done.set_result(answer)
        if applied:
            self.on_applied(_key(decided))

    async def _step(self, operation: Operation) -> int:
        steps = self.state.steps(operation)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return int(end.value)
            await asyncio.sleep(0)


def _key(decided: Sequence[tuple[_Write, Decision[Any]]]) -> DataKey:
    return next(write.key for write, _decision in decided if write.key is not None)


def _fail(write: _Write, error: SealcombError) -> None:
    if not write.done.done():
        write.done.set_exception(error)
        # Marks it as seen where the caller has gone.
        write.done.exception()
