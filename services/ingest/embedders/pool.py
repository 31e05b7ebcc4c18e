"""The threads that embed, and who goes first.

A search waits for one short text, an upload for hundreds of long ones, and both want the same
cores. Work is cut into units of one text, so a query waits for no more than what is being computed;
queries go before bulk, one thread serves queries alone, and calls of one priority take turns, so
that a large document does not hold up a small one. The threads that do bulk work are nicer to the
kernel than the rest of the process: when all cores embed, the query's thread and the event loop still
get theirs at once.

Everything is bounded. A query that finds the queue full is refused at once, because an answer that
comes late is of no use to a search; a bulk call waits for its turn, which slows the upload down.
A call that is cancelled or late leaves the queue; the unit it has on a core runs to its end.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import enum
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from services.common.errors import DeadlineExceeded, ResourceExhausted, SealcombError, Unavailable, invalid

Vectors = npt.NDArray[np.float32]

_log = structlog.get_logger()
_RETRY_AFTER_S = 1.0
_NICE = 5
_NAME_CHARS_MAX = 15


class Priority(enum.Enum):
    """Who goes first."""

    QUERY = 0
    BULK = 1


class TextEmbedder(Protocol):
    """What the pool needs of an embedder; must be safe to call from several threads."""

    @property
    def dimension(self) -> int:
        """Length of every vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension]."""


class _Call:
    """One call's texts, how far they are, and the future its caller waits on."""

    def __init__(self, texts: Sequence[str], dimension: int) -> None:
        self.texts = tuple(texts)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Vectors] = self.loop.create_future()
        self.vectors = np.empty((len(self.texts), dimension), dtype=np.float32)
        self.begun = 0
        self.finished = 0
        self.over = False

    def resolve(self, error: SealcombError | None) -> None:
        """Wakes the caller, from a worker thread; a loop that is gone has no one waiting."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._set, error)

    def _set(self, error: SealcombError | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.vectors)
        else:
            self.future.set_exception(error)


class EmbeddingPool:
    """Runs an embedder on `workers` threads, best one per core, and one more for queries."""

    def __init__(
        self,
        embedder: TextEmbedder,
        *,
        workers: int,
        unit_texts: int = 1,
        queries_max: int = 64,
        bulk_calls_max: int = 16,
        texts_per_call_max: int = 20_000,
        query_timeout_s: float = 10.0,
        bulk_timeout_s: float = 600.0,
    ) -> None:
        """Starts the threads. `unit_texts` above 1 suits an endpoint that takes batches."""
        self._embedder = embedder
        self._unit_texts = unit_texts
        self._queries_max = queries_max
        self._texts_per_call_max = texts_per_call_max
        self._timeout_s = {Priority.QUERY: query_timeout_s, Priority.BULK: bulk_timeout_s}
        self._bulk_slots = asyncio.Semaphore(bulk_calls_max)
        self._condition = threading.Condition()
        self._waiting: dict[Priority, collections.deque[_Call]] = {
            priority: collections.deque() for priority in Priority
        }
        self._open: set[_Call] = set()
        self._closed = False
        lanes = [tuple(Priority)] * workers + [(Priority.QUERY,)]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"embed-{number}", daemon=True)
            for number, lane in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    async def embed(
        self, texts: Sequence[str], priority: Priority, *, timeout_s: float | None = None
    ) -> Vectors:
        """float32 [len(texts), dimension], as the embedder gives them.

        Raises ResourceExhausted when too many queries wait, DeadlineExceeded when the time is up,
        Unavailable once the pool is closed, and whatever error the embedder raises.
        """
        if len(texts) > self._texts_per_call_max:
            raise invalid("texts", f"are more than {self._texts_per_call_max}; send them in parts")
        try:
            async with asyncio.timeout(self._timeout_s[priority] if timeout_s is None else timeout_s):
                if priority is Priority.QUERY:
                    return await self._run(texts, priority)
                async with self._bulk_slots:
                    return await self._run(texts, priority)
        except TimeoutError:
            raise DeadlineExceeded("embedding took too long; try again with fewer texts") from None

    async def close(self) -> None:
        """Refuses what waits, lets units that run end, and joins the threads. May be repeated."""
        with self._condition:
            self._closed = True
            calls = list(self._open)
            self._condition.notify_all()
        for call in calls:
            self._end(call, _closed())
        await asyncio.to_thread(self._join)

    async def __aenter__(self) -> EmbeddingPool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, texts: Sequence[str], priority: Priority) -> Vectors:
        call = _Call(texts, self._embedder.dimension)
        if not call.texts:
            return call.vectors
        with self._condition:
            if self._closed:
                raise _closed()
            if priority is Priority.QUERY and len(self._waiting[priority]) >= self._queries_max:
                raise ResourceExhausted(
                    "too many searches wait for their text to be embedded; try again shortly",
                    reason="EMBEDDER_BUSY",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._open.add(call)
            self._waiting[priority].append(call)
            self._condition.notify_all()
        try:
            return await call.future
        finally:
            self._forget(call)

    def _forget(self, call: _Call) -> None:
        with self._condition:
            call.over = True
            self._open.discard(call)
            for calls in self._waiting.values():
                with contextlib.suppress(ValueError):
                    calls.remove(call)

    def _serve(self, lane: tuple[Priority, ...]) -> None:
        _show_name()
        if Priority.BULK in lane:
            step_back()
        self._work(lane)

    def _work(self, lane: tuple[Priority, ...]) -> None:
        while (unit := self._take(lane)) is not None:
            call, begin, end = unit
            try:
                vectors = self._embedder.embed(call.texts[begin:end])
                self._finish(call, begin, end, vectors)
            except SealcombError as error:
                self._end(call, error)
            except Exception as error:  # noqa: BLE001 - a worker outlives any failure of a model
                # The error's own text may quote the caller's, so its kind alone is logged.
                _log.error("embedding_failed", exception_type=type(error).__name__)
                self._end(call, SealcombError("embedding failed; tell the operator"))

    def _take(self, lane: tuple[Priority, ...]) -> tuple[_Call, int, int] | None:
        """The next unit of the first priority that has one; None once the pool is closed."""
        with self._condition:
            while not self._closed:
                for priority in lane:
                    if self._waiting[priority]:
                        return self._cut(self._waiting[priority])
                self._condition.wait()
            return None

    def _cut(self, calls: collections.deque[_Call]) -> tuple[_Call, int, int]:
        call = calls.popleft()
        begin = call.begun
        call.begun = min(begin + self._unit_texts, len(call.texts))
        if call.begun < len(call.texts):
            calls.append(call)
        return call, begin, call.begun

    def _finish(self, call: _Call, begin: int, end: int, vectors: Vectors) -> None:
        call.vectors[begin:end] = vectors
        with self._condition:
            call.finished += end - begin
            done = call.finished == len(call.texts) and not call.over
        if done:
            self._end(call, None)

    def _end(self, call: _Call, error: SealcombError | None) -> None:
        self._forget(call)
        call.resolve(error)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()


def step_back() -> None:
    """Lets others go first on a core; only Linux does this for one thread, elsewhere it is left."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _show_name() -> None:
    """Gives the thread its name for those who look from outside, such as `top -H`."""
    with contextlib.suppress(OSError):
        Path("/proc/thread-self/comm").write_text(threading.current_thread().name[:_NAME_CHARS_MAX])


def _closed() -> Unavailable:
    return Unavailable(
        "the service is stopping; try again", reason="EMBEDDER_CLOSED", retry_after_s=_RETRY_AFTER_S
    )
