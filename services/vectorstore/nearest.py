"""Nearest neighbours in the rows of a collection as they are at one moment.

A sight is taken on the event loop and may be searched in another thread while the collection goes on.
What it finds was there when it was taken; a row that died since may be among it, or may
have been wiped under it, so whoever searched elsewhere looks again before it answers (searching.py).

With a filter the graph is walked as without one, so far that enough of the rows on the way should match.
These are then the nearest that match. Where too few do, the matches lie elsewhere and are compared.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.vectorstore.distances import (
    Metric,
    Rows,
    Vectors,
    best,
    lengths_of,
    nearness,
    nearness_of,
    ranked,
    unit,
)

__all__ = [
    "Found",
    "Mask",
    "Metric",
    "Rows",
    "Sight",
    "Strategy",
    "Vectors",
    "Walk",
    "Walkable",
    "Work",
    "frontier",
    "lengths_of",
    "unit",
]

Mask = npt.NDArray[np.bool_]

EF_DEFAULT = 128
# Numbers that one core compares in a millisecond, in a scan and in gathered rows; what a step of a walk
# takes, and a number of its vector (`python -m benchmarks.costs`).
_SCANNED_A_MS = 1e7
_GATHERED_A_MS = 1.8e6
_STEP_MS = 4.5e-4
_STEP_NUMBER_MS = 1.5e-6
# A walk with a filter goes so many times as far as where, matches lying anywhere, enough of them are met.
# They must be in this share of what it found: the last rows of a walk are found less surely than the first.
_REACH = 2.0
_TRUSTED_SHARE = 0.75
# How many rows beyond those asked for are ranked: single precision may misorder the last places.
_SPARE = 8
_TOGETHER = 32
_NEARNESS_MAX = 8 * 1024 * 1024


class Strategy(enum.Enum):
    """How the nearest rows were found."""

    EXACT_ALL = 1
    EXACT_MATCHES = 2
    WALK = 3
    WALK_MATCHES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What a search did: rows that matched, rows compared one by one, rows of a walk that were filtered.

    `given_up` says that a walk came first which met too few matches.
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
    """The nearest rows on a walk, nearest first, a row for each query; None where it found too few."""

    rows: Rows | None


class Walkable(Protocol):
    """A graph over the rows before `until`."""

    until: int

    @property
    def alive(self) -> int:
        """Rows of the graph that live."""

    def search(self, queries: Vectors, k: int, ef: int, threads: int = 1) -> Walk:
        """The `k` nearest living rows of each query, or as many as there are."""


@dataclass(frozen=True, slots=True)
class _Want:
    """What each query asks for: `k` rows among those allowed; `filtered` if not all that live are."""

    k: int
    ef: int
    allowed: Mask
    matches: int
    filtered: bool
    threads: int

    @property
    def rows(self) -> int:
        return self.k + _SPARE


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
        return self.search_many(query[np.newaxis], k, ef, allowed)[0]

    def search_many(
        self, queries: Vectors, k: int, ef: int = 0, allowed: Mask | None = None, threads: int = 1
    ) -> list[Found]:
        """The same for several queries, a row each; a walk may use so many threads."""
        if self.metric is Metric.COSINE:
            queries = unit(queries)
        among = self.live if allowed is None else allowed
        want = _Want(k, ef, among, int(np.count_nonzero(among)), allowed is not None, threads)
        together = max(1, min(_TOGETHER, _NEARNESS_MAX // max(len(self.vectors), 1)))
        found: list[Found] = []
        for start in range(0, len(queries), together):
            found += self._search(queries[start : start + together], want)
        return found

    def _search(self, queries: Vectors, want: _Want) -> list[Found]:
        walked, work = self._walk(queries, want)
        answered = [place for place, rows in enumerate(walked) if rows is not None]
        left = [place for place, rows in enumerate(walked) if rows is None]
        found: dict[int, Found] = {}
        if self.graph is not None and answered:
            some = queries if not left else queries[answered]
            tails: Sequence[Rows] = ()
            if len(self.vectors) > self.graph.until:
                tails = self._scan(some, self.graph.until, want)
                work = replace(work, compared=len(self.vectors) - self.graph.until)
            rows = [there for there in walked if there is not None]
            for place, tail in enumerate(tails):
                rows[place] = np.concatenate([rows[place], tail])
            found |= zip(answered, self._ranked(some, rows, want.k, work), strict=True)
        if left:
            exact = Work(Strategy.EXACT_ALL, want.matches, 0, work.visited, work.ef, work.ef > 0)
            found |= zip(left, self._exact(queries[left], want, exact), strict=True)
        return [found[place] for place in range(len(queries))]

    def _walk(self, queries: Vectors, want: _Want) -> tuple[list[Rows | None], Work]:
        """For each query its nearest matches in the graph, None where a walk cannot tell or would not pay."""
        nothing: list[Rows | None] = [None] * len(queries)
        work = Work(Strategy.WALK, want.matches)
        if self.graph is None:
            return nothing, work
        ef = frontier(want.rows, want.ef)
        if not want.filtered:
            walk = self.graph.search(queries, want.rows, ef, want.threads)
            return nothing if walk.rows is None else list(walk.rows), Work(Strategy.WALK, want.matches, ef=ef)
        within = int(np.count_nonzero(want.allowed[: self.graph.until]))
        enough = min(want.rows, within)
        if not enough:
            return nothing, work
        reach = max(ef, math.ceil(_REACH * enough * self.graph.alive / within))
        return self._walk_matches(self.graph, queries, want, enough, min(reach, self.graph.alive))

    def _walk_matches(
        self, graph: Walkable, queries: Vectors, want: _Want, enough: int, reach: int
    ) -> tuple[list[Rows | None], Work]:
        walked: list[Rows | None] = [None] * len(queries)
        work = Work(Strategy.WALK_MATCHES, want.matches)
        if self._walk_ms(reach) >= self._exact_ms(want.matches):
            return walked, work
        work = Work(Strategy.WALK_MATCHES, want.matches, visited=reach, ef=reach)
        walk = graph.search(queries, reach, reach, want.threads)
        if walk.rows is None:
            return walked, work
        # Of a graph that was walked to its end nothing is left to find.
        trusted = reach if reach == graph.alive else int(reach * _TRUSTED_SHARE)
        for place, rows in enumerate(walk.rows[:, :trusted]):
            matching = rows[want.allowed[rows]]
            # Nearest first, so nothing that the walk did not meet is nearer than these.
            if len(matching) >= enough:
                walked[place] = matching[:enough]
        return walked, work

    def _exact(self, queries: Vectors, want: _Want, work: Work) -> list[Found]:
        """The matches compared one by one: gathered, or among all rows where that is cheaper."""
        if want.filtered and self._gathers(want.matches):
            rows = np.flatnonzero(want.allowed)
            near = nearness_of(self.metric, queries, self.vectors, self.scale, rows)
            found = list(rows[best(near, want.rows)])
            work = replace(work, strategy=Strategy.EXACT_MATCHES, compared=want.matches)
        else:
            found = self._scan(queries, 0, want)
            work = replace(work, compared=len(self.vectors))
        return list(self._ranked(queries, found, want.k, work))

    def _gathers(self, matches: int) -> bool:
        return matches / _GATHERED_A_MS < len(self.vectors) / _SCANNED_A_MS

    def _exact_ms(self, matches: int) -> float:
        rows, dimension = len(self.vectors), int(self.vectors.shape[1])
        return dimension * min(matches / _GATHERED_A_MS, rows / _SCANNED_A_MS)

    def _walk_ms(self, ef: int) -> float:
        return ef * (_STEP_MS + int(self.vectors.shape[1]) * _STEP_NUMBER_MS)

    def cost_ms(self, k: int, ef: int, filtered: bool) -> float:
        """About how long a search takes at worst: with a filter, a walk given up and an exact look."""
        if self.graph is None:
            return self._exact_ms(len(self.vectors))
        if filtered:
            return 2 * self._exact_ms(len(self.vectors))
        return self.work_ms(
            Work(Strategy.WALK, 0, len(self.vectors) - self.graph.until, ef=frontier(k + _SPARE, ef))
        )

    def work_ms(self, work: Work) -> float:
        """About how long a search took."""
        gathered = work.strategy is Strategy.EXACT_MATCHES
        numbers = work.compared * int(self.vectors.shape[1])
        walked = work.visited or (work.ef if work.strategy is Strategy.WALK else 0)
        return numbers / (_GATHERED_A_MS if gathered else _SCANNED_A_MS) + self._walk_ms(walked)

    def _scan(self, queries: Vectors, start: int, want: _Want) -> list[Rows]:
        allowed = want.allowed[start:]
        near = nearness(self.metric, queries, self.vectors[start:], self.scale[start:])
        if not allowed.all():
            near[:, ~allowed] = -np.inf
        return [rows[allowed[rows]] + start for rows in best(near, want.rows)]

    def _ranked(self, queries: Vectors, found: Sequence[Rows], k: int, work: Work) -> Iterator[Found]:
        cost_ms = self.work_ms(work)
        for query, rows in zip(queries, found, strict=True):
            yield Found(*ranked(self.metric, query, self.vectors, rows, k), work, cost_ms)


def frontier(wanted: int, ef: int) -> int:
    """The `ef` of a walk: the one asked for, or a default that grows with the number of hits."""
    return ef or max(EF_DEFAULT, 2 * wanted)
