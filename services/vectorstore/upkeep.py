"""Upkeep of an opened collection: graphs, compaction and snapshots, in the background, one at a time.

None of it changes what a caller sees. Each job captures the state on the event loop, works in a thread,
and brings its result back on the event loop; a collection that was closed meanwhile drops it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from services.common.errors import SealcombError, Unavailable
from services.common.objects import ObjectStore
from services.common.sealing import DataKey
from services.vectorstore.collection import Collection, Decision
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Graph, build_graph
from services.vectorstore.layout import Layout
from services.vectorstore.log import Head, LostPlace
from services.vectorstore.manifest import Moment
from services.vectorstore.operations import DeleteDocument, DeletePoints, Operation
from services.vectorstore.snapshot import Wish, Writer, copy, discard_old
from services.vectorstore.state import Capture, State
from services.vectorstore.store import Store

_log = structlog.get_logger("upkeep")
_T = TypeVar("_T")
_Work = Callable[[], Awaitable[None]]
_COMPACT_DEAD_MIN = 1000
_COMPACT_DEAD_SHARE = 0.3
_CATCH_UP_MAX = 64
_QUIET_S = 5.0
_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What upkeep uses, and when a log is long enough for a snapshot."""

    store: Store
    objects: ObjectStore
    # For work of seconds; few threads, so that queries keep their core.
    builders: Executor
    log_bytes: int = 8 * 1024 * 1024
    log_records: int = 2000
    # How long deleted content may stay in the log and in snapshots.
    erase_after_s: float = 600.0
    quiet_s: float = _QUIET_S


class Keeper:
    """Keeps one collection in shape."""

    def __init__(
        self, collection: Collection, upkeep: Upkeep, layout: Layout, *, leftovers: bool = False
    ) -> None:
        self._collection = collection
        self._upkeep = upkeep
        # What is stored, and the graph that its graph part is of.
        self._layout = layout
        self._stored_graph: Graph | None = collection.state.index.graph if layout.graph else None
        self._leftovers = leftovers
        self._stop = threading.Event()
        self._job: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._erase: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._erase_due = False
        # A graph was built that no snapshot has: after a restart it would be built again.
        self._graph_due = False
        self._dead = collection.state.index.dead
        self._key: DataKey | None = None
        collection.on_applied = self._applied

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    async def close(self) -> None:
        """Stops; a job that cannot stop at once ends without effect."""
        self._stop.set()
        for timer in (self._later, self._erase, self._retry):
            if timer is not None:
                timer.cancel()
        if self._job is not None:
            self._job.cancel()
            await asyncio.wait([self._job])

    @property
    def snapshot_bytes(self) -> int:
        """The newest snapshot, about."""
        return self._layout.size_bytes

    def start(self, key: DataKey) -> None:
        """Looks for work right after opening."""
        self._key = key
        self._consider()

    def _applied(self, key: DataKey) -> None:
        self._key = key
        dead = self._collection.state.index.dead
        if dead > self._dead:
            self._collection.tail.deletions = True
        self._dead = dead
        self._consider()

    def _consider(self) -> None:
        if self._job is not None or self._stop.is_set() or not self._collection.usable:
            return
        self._schedule_erasure()
        work = self._next()
        if work is not None:
            self._job = asyncio.create_task(self._run(work))
        elif self._collection.state.index.would_like_graph() and self._later is None:
            self._later = asyncio.get_running_loop().call_later(self._upkeep.quiet_s, self._quiet)

    def _next(self) -> _Work | None:
        collection, index = self._collection, self._collection.state.index
        if index.dead >= max(_COMPACT_DEAD_MIN, int(index.rows * _COMPACT_DEAD_SHARE)):
            return self._compact
        if self._leftovers:
            return self._discard
        # A snapshot looks at all that is there, so with much there it comes after more.
        long = max(self._upkeep.log_bytes, min(self.snapshot_bytes // 8, 8 * self._upkeep.log_bytes))
        tail = collection.tail
        if (
            tail.size_bytes > long
            or tail.records > self._upkeep.log_records
            or self._erase_due
            or self._graph_due
        ):
            return self.snapshot
        return self._graph if index.wants_graph() else None

    async def _run(self, work: _Work) -> None:
        done = False
        try:
            await work()
            done = True
        except SealcombError as error:
            _log.warning("upkeep failed", resource=self._collection.scope.collection, reason=error.reason)
        except Exception:  # noqa: BLE001  (the outermost loop of a worker)
            _log.exception("upkeep failed", resource=self._collection.scope.collection)
        finally:
            self._job = None
        if done:
            self._consider()
        elif self._retry is None and not self._stop.is_set():
            # Tried again after a while or with the next write: what is deleted has to leave in time.
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._again)

    def _again(self) -> None:
        self._retry = None
        self._consider()

    def _quiet(self) -> None:
        self._later = None
        idle = self._collection.state.index.would_like_graph()
        if idle and self._job is None and not self._stop.is_set():
            self._job = asyncio.create_task(self._run(self._graph))

    def _schedule_erasure(self) -> None:
        if self._collection.tail.deletions and self._erase is None:
            loop = asyncio.get_running_loop()
            self._erase = loop.call_later(self._upkeep.erase_after_s, self._erase_now)

    def _erase_now(self) -> None:
        # A snapshot that is just ending may not have said yet what it only marked as gone.
        self._erase, self._erase_due = None, self._collection.tail.deletions or self._job is not None
        self._consider()

    async def reseal(self, key: DataKey) -> None:
        """Writes everything anew under a key; what fails is logged, and shows in what is sealed."""
        while self._job is not None:
            await asyncio.wait([self._job])
        if self._stop.is_set():
            raise Unavailable("the collection was just closed; try again", retry_after_s=0.1)
        self._key = key
        job = self._job = asyncio.create_task(self._run(lambda: self._reseal(key)))
        await asyncio.wait([job])

    async def _reseal(self, key: DataKey) -> None:
        """Some parts at a time, so that what is done stays done."""
        if self._leftovers:
            # A note of the same lsn would be lost with the next one's.
            await self._discard()
        # One of its own, also where nothing was written since the last one.
        await self.snapshot(key)
        while not self._stop.is_set() and any(part.key_id != key.id for part in self._layout.parts):
            await self.snapshot(key)

    async def _graph(self) -> None:
        collection = self._collection
        state, plan = await collection.at_rest(
            lambda: (collection.state, collection.state.index.plan_graph())
        )
        try:
            graph = await self._in_thread(build_graph, plan, self._stop)
        finally:
            state.index.thaw()
        if graph is not None and state is collection.state:
            state.index.adopt_graph(graph)
            collection.resize()
            self._graph_due = True

    async def _compact(self) -> None:
        """Makes a state without dead rows beside the present one, and catches up with it."""
        collection = self._collection

        def begin() -> tuple[Moment, Capture]:
            collection.since = []
            return self._moment(), collection.state.capture()

        moment, capture = await collection.at_rest(begin)
        has_graph = capture.graph is self._stored_graph
        try:
            state = await self._in_thread(copy, moment, capture, collection.state.columns.indexed)
            while collection.since is not None and len(collection.since) > _CATCH_UP_MAX:
                missed, collection.since = collection.since, []
                await self._in_thread(_catch_up, state, missed)

            def end() -> None:
                _catch_up(state, collection.since or ())
                collection.state = state
                # Ordinals stay, so the parts stay what they are.
                self._layout = self._layout.compacted(capture.live_items)
                self._stored_graph = state.index.graph if has_graph else None
                collection.resize()

            await collection.at_rest(end)
        finally:
            collection.since = None
            capture.release()
        self._dead = state.index.dead

    async def snapshot(self, reseal: DataKey | None = None) -> None:
        """Writes a snapshot of the present state and shortens the log to what came after it.

        `reseal` is the key that parts under others are sealed anew with, some of them.
        """
        due = self._graph_due, self._erase_due
        self._graph_due = self._erase_due = False
        try:
            await self._snapshot(due, reseal)
        except SealcombError:
            self._graph_due, self._erase_due = self._graph_due or due[0], self._erase_due or due[1]
            raise

    async def _snapshot(self, due: tuple[bool, bool], reseal: DataKey | None) -> None:
        # Not the key of the last write where it reseals: that write may have begun before the rotation.
        collection, upkeep, key = self._collection, self._upkeep, reseal or self._key
        if key is None:
            return
        if collection.head.lsn == collection.head.snapshot_lsn:
            if not any(due) and reseal is None:
                return
            # A snapshot is never replaced by another of the same lsn, so the log moves on, changing nothing.
            await collection.write(_nothing, key)
        moment, capture = await collection.at_rest(lambda: (self._moment(), collection.state.capture()))
        # Deletions that come while it is written are for the next one.
        has_graph = capture.graph is self._stored_graph
        wish = Wish(erase=due[1], reseal=reseal is not None, has_graph=has_graph)
        writer = Writer(upkeep.store, upkeep.objects, key, collection.scope, collection.epoch, self._stop)
        try:
            written = await self._in_thread(writer.write, moment, capture, self._layout, wish)
        finally:
            capture.release()

        def moved(now: Head) -> Head:
            return replace(now, snapshot_lsn=moment.lsn, snapshot_digest=written.digest)

        try:
            await collection.write(lambda _state: Decision((), lambda _counts: None, moved, moment.lsn), key)
        except LostPlace:
            await self._in_thread(writer.withdraw)
            raise
        self._layout, self._stored_graph = written.layout, capture.graph
        # What is gone from the state but still in a part waits for its erasure.
        collection.tail.deletions |= written.layout.gone > 0
        await self._discard()

    async def _discard(self) -> None:
        """Deletes what the present snapshot does not name."""
        upkeep, current = self._upkeep, self._collection.head.snapshot_lsn
        collection, epoch = self._collection.scope.collection, self._collection.epoch
        await self._in_thread(
            discard_old, upkeep.store, upkeep.objects, collection, epoch, current, self._layout
        )
        self._leftovers = False

    def _moment(self) -> Moment:
        state, head = self._collection.state, self._collection.head
        text = isinstance(state, DocumentState)
        index = state.index
        return Moment(text, index.dimension, index.metric, head.lsn, head.chain, state.next_number)

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._upkeep.builders, function, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread still reads what was captured for it.
            self._stop.set()
            await asyncio.wait([future])
            raise


def _nothing(state: State) -> Decision[None]:
    nothing = DeleteDocument("") if isinstance(state, DocumentState) else DeletePoints(())
    return Decision([nothing], lambda _counts: None)


def _catch_up(state: State, operations: Iterable[Operation]) -> None:
    for operation in operations:
        state.apply(operation)
