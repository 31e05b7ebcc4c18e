"""Nearest neighbours in the rows of a collection as they are at one moment.

A sight is taken on the event loop and may be searched in another thread while the collection goes on.
What it finds was there when it was taken; a row that died since may be among it, or may
have been wiped under it, so whoever searched elsewhere looks again before it answers (searching.py).
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

EF_DEFAULT = 128
_BLOCK_ROWS = 1024
# Numbers that one core compares in a millisecond, in a scan and in gathered rows; what a step of a walk
# takes, a number of its vector, and a visit, which asks Python about a row (`python -m benchmarks.costs`).
_SCANNED_A_MS = 1e7
_GATHERED_A_MS = 1.8e6
_STEP_MS = 4.5e-4
_STEP_NUMBER_MS = 1.5e-6
_VISIT_MS = 8e-4
# A walk for `ef` matches visits about so many times the rows among which as many match.
_VISITS_A_MATCH = 2.0
# With less than this share of the matches expected on the way, they lie elsewhere than near the query, where
# a walk may end before the best of them.
_TRUSTED_SHARE = 0.8


class Metric(enum.Enum):
    """How near two vectors are."""

    COSINE = 1
    DOT = 2
    L2 = 3


class Strategy(enum.Enum):
    """How the nearest rows were found."""

    EXACT_ALL = 1
    EXACT_MATCHES = 2
    WALK = 3
    WALK_MATCHES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What a search did: rows that matched, rows compared one by one, rows that a filtered walk asked about.

    `given_up` says that a walk came first whose answer was not to be trusted.
    """

    strategy: Strategy
    matches: int
    compared: int = 0
    visited: int = 0
    ef: int = 0
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Rows in order of nearness, with scores: similarity, or squared distance for L2."""

    rows: Rows
    scores: npt.NDArray[np.float64]
    work: Work | None = None
    # About how long it took a core.
    cost_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Walk:
    """The nearest rows on a walk, none where it found fewer than it was asked for or was stopped.

    With a filter: how many rows it asked about, and how many of them match.
    """

    rows: Rows | None
    visited: int = 0
    matched: int = 0


class Walkable(Protocol):
    """A graph over the rows before `until`."""

    until: int

    @property
    def alive(self) -> int:
        """Rows of the graph that live."""

    def search(
        self, query: Vectors, k: int, ef: int, allowed: Mask | None, visits_max: int = sys.maxsize
    ) -> Walk:
        """The nearest rows; with a filter after at most so many visits."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The vectors of a collection at one moment. `live` is nobody else's to change."""

    metric: Metric
    vectors: Vectors
    # COSINE: one over the length of each vector; else nothing.
    scale: npt.NDArray[np.float32]
    live: Mask
    graph: Walkable | None

    def search(self, query: Vectors, k: int, ef: int = 0, allowed: Mask | None = None) -> Found:
        """The `k` nearest living rows among the allowed ones; all rows where `allowed` is None.

        `allowed` has been masked with `live`. `ef` bounds the walk through the graph; 0 is the default.
        """
        if self.metric is Metric.COSINE:
            query = _unit_query(query)
        # A few more than asked for: single precision may misorder the last places.
        wanted = k + 8
        if allowed is None:
            return self._search_all(query, k, wanted, ef)
        matches = int(np.count_nonzero(allowed))
        visits = _visits(frontier(wanted, ef), matches, len(allowed))
        exact_ms = self._exact_ms(matches)
        if self.graph is None or visits * _VISIT_MS >= exact_ms:
            return self._exact(query, k, wanted, allowed, Work(Strategy.EXACT_ALL, matches))
        return self._walk_matches(self.graph, query, k, wanted, ef, allowed, int(exact_ms / _VISIT_MS))

    def _search_all(self, query: Vectors, k: int, wanted: int, ef: int) -> Found:
        alive = int(np.count_nonzero(self.live))
        if self.graph is not None:
            ef = frontier(wanted, ef)
            walk = self.graph.search(query, wanted, ef, None)
            if walk.rows is not None:
                tail = self._scan(query, self.graph.until, wanted, None)
                work = Work(Strategy.WALK, alive, len(self.vectors) - self.graph.until, ef=ef)
                return self._ranked(query, np.concatenate([walk.rows, tail]), k, work)
        rows = self._scan(query, 0, wanted, None)
        return self._ranked(query, rows, k, Work(Strategy.EXACT_ALL, alive, len(self.vectors)))

    def _walk_matches(
        self, graph: Walkable, query: Vectors, k: int, wanted: int, ef: int, allowed: Mask, visits_max: int
    ) -> Found:
        matches, ef = int(np.count_nonzero(allowed)), frontier(wanted, ef)
        walk = graph.search(query, wanted, ef, allowed, visits_max)
        expected = np.count_nonzero(allowed[: graph.until]) / max(graph.alive, 1) * walk.visited
        if walk.rows is None or walk.matched < _TRUSTED_SHARE * expected:
            given_up = Work(Strategy.EXACT_ALL, matches, visited=walk.visited, ef=ef, given_up=True)
            return self._exact(query, k, wanted, allowed, given_up)
        tail = self._scan(query, graph.until, wanted, allowed)
        work = Work(Strategy.WALK_MATCHES, matches, len(self.vectors) - graph.until, walk.visited, ef)
        return self._ranked(query, np.concatenate([walk.rows, tail]), k, work)

    def _exact(self, query: Vectors, k: int, wanted: int, allowed: Mask, work: Work) -> Found:
        """The matches compared one by one: gathered, or among all rows where that is cheaper."""
        if self._gathers(work.matches):
            rows = self._nearest_of(query, np.flatnonzero(allowed), wanted)
            work = replace(work, strategy=Strategy.EXACT_MATCHES, compared=work.matches)
        else:
            rows = self._scan(query, 0, wanted, allowed)
            work = replace(work, compared=len(self.vectors))
        return self._ranked(query, rows, k, work)

    def _gathers(self, matches: int) -> bool:
        return matches / _GATHERED_A_MS < len(self.vectors) / _SCANNED_A_MS

    def _exact_ms(self, matches: int) -> float:
        rows, dimension = len(self.vectors), int(self.vectors.shape[1])
        return dimension * min(matches / _GATHERED_A_MS, rows / _SCANNED_A_MS)

    def cost_ms(self, k: int, ef: int, filtered: bool) -> float:
        """About how long a search takes at worst: with a filter, a walk given up and an exact look."""
        if self.graph is None:
            return self._exact_ms(len(self.vectors))
        if filtered:
            return 2 * self._exact_ms(len(self.vectors))
        return self.work_ms(
            Work(Strategy.WALK, 0, len(self.vectors) - self.graph.until, ef=frontier(k + 8, ef))
        )

    def work_ms(self, work: Work) -> float:
        """About how long a search took."""
        dimension = int(self.vectors.shape[1])
        gathered = work.strategy is Strategy.EXACT_MATCHES
        compared = work.compared * dimension / (_GATHERED_A_MS if gathered else _SCANNED_A_MS)
        walked = work.ef * (_STEP_MS + dimension * _STEP_NUMBER_MS) if work.strategy is Strategy.WALK else 0.0
        return compared + walked + work.visited * _VISIT_MS

    def _scan(self, query: Vectors, start: int, wanted: int, allowed: Mask | None) -> Rows:
        live = self.live[start:] if allowed is None else allowed[start:]
        nearness = self._nearness(query, self.vectors[start:], self.scale[start:])
        nearness[~live] = -np.inf
        rows = _top(nearness, wanted)
        kept: Rows = rows[live[rows]] + start
        return kept

    def _nearest_of(self, query: Vectors, rows: Rows, wanted: int) -> Rows:
        scale = self.scale[rows] if self.metric is Metric.COSINE else self.scale
        nearness = self._nearness(query, self.vectors[rows], scale)
        near: Rows = rows[_top(nearness, wanted)]
        return near

    def _nearness(self, query: Vectors, vectors: Vectors, scale: npt.NDArray[np.float32]) -> Vectors:
        """Larger is nearer."""
        if self.metric is not Metric.L2:
            dots: Vectors = vectors @ query
            return dots * scale if self.metric is Metric.COSINE else dots
        nearness = np.empty(len(vectors), np.float32)
        # Differences, block by block: |a|^2 - 2ab + |b|^2 loses near neighbours far from the origin.
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = vectors[start : start + _BLOCK_ROWS] - query
            nearness[start : start + len(block)] = -np.einsum("ij,ij->i", block, block)
        return nearness

    def _ranked(self, query: Vectors, rows: Rows, k: int, work: Work) -> Found:
        """Exact scores in double precision, and the order by them, then by row."""
        vectors = self.vectors[rows].astype(np.float64)
        wanted = query.astype(np.float64)
        if self.metric is Metric.L2:
            apart = vectors - wanted
            scores: npt.NDArray[np.float64] = np.einsum("ij,ij->i", apart, apart)
            order = np.lexsort((rows, scores))[:k]
        else:
            scores = np.asarray(vectors @ wanted)
            if self.metric is Metric.COSINE:
                # Squares of lengths within 1e-18 to 1e18 stay far inside double precision.
                scores = scores / np.sqrt(np.einsum("ij,ij->i", vectors, vectors) * (wanted @ wanted))
            order = np.lexsort((rows, -scores))[:k]
        return Found(rows[order], scores[order], work, self.work_ms(work))


def frontier(wanted: int, ef: int) -> int:
    """The `ef` of a walk: the one asked for, or a default that grows with the number of hits."""
    return ef or max(EF_DEFAULT, 2 * wanted)


def _visits(ef: int, matches: int, rows: int) -> float:
    """About how many rows a walk visits until it has found `ef` that match, if they lie anywhere."""
    return _VISITS_A_MATCH * ef * rows / max(matches, 1)


def lengths_of(vectors: Vectors) -> Vectors:
    """The length of each vector."""
    # Double precision: the squares of very short or long vectors leave the range of single.
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.asarray(np.sqrt(squares), np.float32)


def unit(vectors: Vectors) -> Vectors:
    """The vectors at length 1."""
    lengths = np.maximum(lengths_of(vectors), np.float32(1e-30))
    return np.asarray(vectors / lengths[:, np.newaxis], np.float32)


def _unit_query(query: Vectors) -> Vectors:
    """The same as `unit`, for one vector and at a third of the cost."""
    wide = query.astype(np.float64)
    return np.asarray(wide / max(float(wide @ wide) ** 0.5, 1e-30), np.float32)


def _top(nearness: Vectors, count: int) -> Rows:
    if count >= len(nearness):
        return np.arange(len(nearness))
    return np.argpartition(nearness, len(nearness) - count)[-count:]
