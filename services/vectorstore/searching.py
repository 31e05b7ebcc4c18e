"""Queries over an open collection."""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from services.common.errors import ResourceExhausted
from services.vectorstore.documents import DocumentState
from services.vectorstore.filters import Filter, count
from services.vectorstore.fusion import DEPTH, fuse
from services.vectorstore.index import Found, Mask, Vectors
from services.vectorstore.nearest import Work
from services.vectorstore.operations import Document, Passage
from services.vectorstore.residency import Use
from services.vectorstore.state import Point, State
from services.vectorstore.writing import not_text

_NOTHING = Found(np.empty(0, np.int64), np.empty(0, np.float64))


class Mode(enum.Enum):
    """How passages are ranked."""

    HYBRID = 1
    DENSE = 2
    LEXICAL = 3


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found."""

    point: Point
    score: float
    vector: Vectors | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows that a query found in a state, how, and about how long that took a core."""

    state: State
    rows: list[int]
    scores: list[float]
    vectors: Vectors | None
    work: Work | None
    cost_ms: float

    @property
    def hits(self) -> list[Hit]:
        """The points that were found."""
        vectors = [None] * len(self.rows) if self.vectors is None else list(self.vectors)
        return [
            Hit(self.state.point(row), score, vector)
            for row, score, vector in zip(self.rows, self.scores, vectors, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PassageHit:
    """A passage that was found."""

    document: Document
    passage: Passage
    score: float


# What a condition of a filter costs by row (`python -m benchmarks.costs`).
_CONDITION_MS = 5e-6
# A search that takes longer goes to a thread, so that it holds no other call up.
_INLINE_MS = 1.0
_TRIES = 3
_WAITING_MAX = 256
_TOGETHER = 32
# Beyond so many at once, a walk's second thread would take a core from another call for little.
_THREADS = min(2, os.cpu_count() or 1)
# A search for each query, all of one kind.
_Search = Callable[[], list[Found]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A query for points."""

    vector: Vectors
    k: int
    ef: int
    condition: Filter | None
    with_vectors: bool


@dataclass(frozen=True, slots=True)
class WantedPassages:
    """A search for passages; no vector for words alone."""

    mode: Mode
    vector: Vectors | None
    text: str
    k: int
    condition: Filter | None
    principals: Sequence[str]
    one_per_document: bool = False


class Finder:
    """Runs searches: short ones at once, long ones in a thread, of which there are few."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting = 0

    async def query(self, use: Use, wanted: Wanted) -> Answer:
        """The nearest points that match."""
        return (await self._alike(use, [wanted]))[0]

    async def query_many(self, use: Use, wanted: Sequence[Wanted]) -> list[Answer]:
        """The same for several queries; those that differ in their vectors alone are searched together."""
        kinds: dict[tuple[int, int, Filter | None, bool], list[int]] = {}
        for place, one in enumerate(wanted):
            kinds.setdefault((one.k, one.ef, one.condition, one.with_vectors), []).append(place)
        answers: dict[int, Answer] = {}
        for places in kinds.values():
            for start in range(0, len(places), _TOGETHER):
                some = places[start : start + _TOGETHER]
                answers |= zip(some, await self._alike(use, [wanted[place] for place in some]), strict=True)
                # Other calls get their turn in between.
                await asyncio.sleep(0)
        return [answers[place] for place in range(len(wanted))]

    async def _alike(self, use: Use, wanted: Sequence[Wanted]) -> list[Answer]:
        threads = 1 if self._waiting else _THREADS
        state, found = await self._found(use, lambda state: _plan_query(state, wanted, threads))
        return [
            Answer(
                state,
                one.rows.tolist(),
                one.scores.tolist(),
                state.index.vectors(one.rows) if wanted[0].with_vectors else None,
                one.work,
                one.cost_ms,
            )
            for one in found
        ]

    async def search_passages(self, use: Use, wanted: WantedPassages) -> list[PassageHit]:
        """The best passages of documents that match and may be seen."""
        if not isinstance(use.collection.state, DocumentState):
            raise not_text()
        state, (found,) = await self._found(use, lambda state: _plan_passages(state, wanted))
        if not isinstance(state, DocumentState):
            raise not_text()
        return [
            PassageHit(*state.passage(row), score)
            for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    async def matching(self, use: Use, condition: Filter | None) -> tuple[State, Mask | None]:
        """The state now, and which of its rows match; None for all that it has."""
        state = use.collection.state
        look = state.look()
        cost_ms = count(condition) * len(look.live) * _CONDITION_MS if condition else 0.0
        if cost_ms <= _INLINE_MS:
            return state, state.seen(look, condition)
        mask = await self._elsewhere(lambda: state.seen(look, condition))
        if state is not use.collection.state:
            return use.collection.state, use.collection.state.allowed(condition)
        return state, None if mask is None else mask & state.index.live[: len(mask)]

    async def _found(
        self, use: Use, plan: Callable[[State], tuple[_Search, float]]
    ) -> tuple[State, list[Found]]:
        """What searches find, and the state in which all of it is there now."""
        for _ in range(_TRIES):
            state = use.collection.state
            search, cost_ms = plan(state)
            if cost_ms <= _INLINE_MS:
                return state, search()
            found = await self._elsewhere(search)
            # What was deleted meanwhile must not be answered, and leaves a gap that something else fills.
            live = state.index.live
            if state is use.collection.state and all(live[one.rows].all() for one in found):
                return state, found
        state = use.collection.state
        return state, plan(state)[0]()

    async def _elsewhere(self, search: Callable[[], _T]) -> _T:
        if self._waiting >= _WAITING_MAX:
            raise ResourceExhausted(
                "too many searches wait; slow down", reason="SEARCH_QUEUE_FULL", retry_after_s=0.5
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, _quietly, search)
        finally:
            self._waiting -= 1


def _plan_query(state: State, wanted: Sequence[Wanted], threads: int) -> tuple[_Search, float]:
    """A search for queries that differ in their vectors alone."""
    look = state.look()
    sight = state.index.sight(look.live)
    one = wanted[0]
    cost_ms = sight.cost_ms(one.k, one.ef, one.condition is not None) * len(wanted)
    filter_ms = count(one.condition) * len(look.live) * _CONDITION_MS if one.condition else 0.0

    def search() -> list[Found]:
        if not look.live.any():
            return [_NOTHING] * len(wanted)
        queries = np.stack([each.vector for each in wanted])
        found = sight.search_many(queries, one.k, one.ef, state.seen(look, one.condition), threads)
        return [replace(each, cost_ms=each.cost_ms + filter_ms) for each in found] if filter_ms else found

    return search, cost_ms + filter_ms


def _plan_passages(state: State, wanted: WantedPassages) -> tuple[_Search, float]:
    if not isinstance(state, DocumentState):
        raise not_text()
    look = state.look()
    sight = state.index.sight(look.live)
    lexical_index, length_sum = state.lexical, state.lexical.length_sum
    depth = DEPTH if wanted.mode is Mode.HYBRID or wanted.one_per_document else wanted.k
    filtered = wanted.condition is not None or look.restricted
    cost_ms = count(wanted.condition) * len(look.alive) * _CONDITION_MS if wanted.condition else 0.0
    if wanted.vector is not None:
        cost_ms += sight.cost_ms(depth, 0, filtered)
    if wanted.mode is not Mode.DENSE:
        cost_ms += lexical_index.cost_ms(wanted.text, len(look.live))

    def search() -> list[Found]:
        if not look.live.any():
            return [_NOTHING]
        allowed = state.seen(look, wanted.condition, wanted.principals)
        dense = lexical = _NOTHING
        if wanted.vector is not None and wanted.mode is not Mode.LEXICAL:
            dense = sight.search(wanted.vector, depth, 0, allowed)
        if wanted.mode is not Mode.DENSE:
            lexical = lexical_index.search(wanted.text, depth, look.live, allowed, length_sum)
        match wanted.mode:
            case Mode.HYBRID:
                found = fuse(dense, lexical, 2 * DEPTH if wanted.one_per_document else wanted.k)
            case Mode.DENSE:
                found = dense
            case Mode.LEXICAL:
                found = lexical
        return [_best_of_each(state, found, wanted.k) if wanted.one_per_document else found]

    return search, cost_ms


def _best_of_each(state: DocumentState, found: Found, k: int) -> Found:
    """The first row of each document; rows come best first."""
    _documents, first = np.unique(state.owners(found.rows), return_index=True)
    kept = np.sort(first)[:k]
    return Found(found.rows[kept], found.scores[kept])


def _quietly(search: Callable[[], _T]) -> _T:
    # A vector that is wiped under the search divides zero by zero; its row is dead, so it is not answered.
    with np.errstate(divide="ignore", invalid="ignore"):
        return search()
