"""Nearest neighbours in the rows of a collection as they are at one moment.

A sight is taken on the event loop and may be searched in another thread while the collection goes on.
What it finds was there when it was taken; a row that died since may be among it, or may
have been wiped under it, so whoever searched elsewhere looks again before it answers (searching.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

EF_DEFAULT = 128
# Below this many matches an exact look at each beats a filtered walk through the graph.
GATHER_MAX = 5_000
_BLOCK_ROWS = 1024
# What one core does in a millisecond, estimated: numbers compared in a scan, in gathered rows, and
# numbers of frontier in a walk without and with a filter.
_SCANNED_A_MS = 8e6
_GATHERED_A_MS = 3e6
_WALKED_A_MS = 1e5
_WALKED_FILTERED_A_MS = 1e4


class Metric(enum.Enum):
    """How near two vectors are."""

    COSINE = 1
    DOT = 2
    L2 = 3


@dataclass(frozen=True, slots=True)
class Found:
    """Rows in order of nearness, with scores: similarity, or squared distance for L2."""

    rows: Rows
    scores: npt.NDArray[np.float64]


class Walkable(Protocol):
    """A graph over the rows before `until`."""

    until: int

    def search(self, query: Vectors, k: int, ef: int, allowed: Mask | None) -> Rows | None:
        """The nearest rows; None where the walk found fewer than it was asked for."""


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
            query = unit(query[np.newaxis, :])[0]
        # A few more than asked for: single precision may misorder the last places.
        wanted = k + 8
        if allowed is not None and np.count_nonzero(allowed) <= GATHER_MAX:
            rows = self._nearest_of(query, np.flatnonzero(allowed), wanted)
        elif self.graph is None:
            rows = self._scan(query, 0, wanted, allowed)
        else:
            rows = self._walk(self.graph, query, wanted, ef, allowed)
        return self._ranked(query, rows, k)

    def cost_ms(self, k: int, ef: int, filtered: bool) -> float:
        """About how long a search takes at worst."""
        rows, dimension = len(self.vectors), int(self.vectors.shape[1])
        if self.graph is None:
            return rows * dimension / _SCANNED_A_MS
        tail = (rows - self.graph.until) * dimension / _SCANNED_A_MS
        walk = frontier(k + 8, ef) * dimension / (_WALKED_FILTERED_A_MS if filtered else _WALKED_A_MS)
        gather = min(rows, GATHER_MAX) * dimension / _GATHERED_A_MS if filtered else 0.0
        return tail + max(walk, gather)

    def _walk(self, graph: Walkable, query: Vectors, wanted: int, ef: int, allowed: Mask | None) -> Rows:
        near = graph.search(query, wanted, frontier(wanted, ef), allowed)
        if near is None:
            return self._scan(query, 0, wanted, allowed)
        return np.concatenate([near, self._scan(query, graph.until, wanted, allowed)])

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

    def _ranked(self, query: Vectors, rows: Rows, k: int) -> Found:
        """Exact scores in double precision, and the order by them, then by row."""
        vectors = self.vectors[rows].astype(np.float64)
        wanted = query.astype(np.float64)
        if self.metric is Metric.L2:
            scores: npt.NDArray[np.float64] = np.square(vectors - wanted).sum(1)
            order = np.lexsort((rows, scores))[:k]
        else:
            scores = np.asarray(vectors @ wanted)
            if self.metric is Metric.COSINE:
                scores = scores / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted))
            order = np.lexsort((rows, -scores))[:k]
        return Found(rows[order], scores[order])


def frontier(wanted: int, ef: int) -> int:
    """The `ef` of a walk: the one asked for, or a default that grows with the number of hits."""
    return ef or max(EF_DEFAULT, 2 * wanted)


def lengths_of(vectors: Vectors) -> Vectors:
    """The length of each vector."""
    # Double precision: the squares of very short or long vectors leave the range of single.
    return np.asarray(np.linalg.norm(vectors.astype(np.float64), axis=1), np.float32)


def unit(vectors: Vectors) -> Vectors:
    """The vectors at length 1."""
    lengths = np.maximum(lengths_of(vectors), np.float32(1e-30))
    return np.asarray(vectors / lengths[:, np.newaxis], np.float32)


def _top(nearness: Vectors, count: int) -> Rows:
    if count >= len(nearness):
        return np.arange(len(nearness))
    return np.argpartition(nearness, len(nearness) - count)[-count:]
