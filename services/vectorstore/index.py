"""The vector index of one collection: exact while small, HNSW with an exact tail when large.

The only module that knows hnswlib, and what it must never do with it (each seen to crash or to
lose data): query an index while it is resized or saved, add to an index that serves queries, ask it
for more neighbours than it has, load bytes that were not authenticated. So a graph is built once,
in another thread, from rows that never change, and then serves queries; deletions only mark it.
Rows that came later are scanned exactly, until they are many enough for a new graph.

A row is a number that is given once and never again; the rows of deleted points are wiped at once
in the matrix, in the graph when it is next built.
"""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass

import hnswlib
import numpy as np
import numpy.typing as npt

from services.vectorstore.arrays import Growable

Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

FLAT_MAX = 8_000
EF_DEFAULT = 128
_M = 16
_EF_CONSTRUCTION = 100
# Below this many matches an exact look at each beats a filtered walk through the graph.
_GATHER_MAX = 5_000
_TAIL_MIN = 2_000
_DEAD_SHARE_MAX = 0.3
_BUILD_BATCH = 256
_BLOCK_ROWS = 1024
_GRAPH_BYTES_A_ROW = 4 * (2 * _M + 2) + 48


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


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """What a graph is to be built from; safe to use in another thread."""

    metric: Metric
    vectors: Vectors
    rows: Rows
    until: int


class Graph:
    """An HNSW graph over rows that were alive when it was planned; its labels are the rows."""

    def __init__(self, metric: Metric, index: hnswlib.Index, rows: Rows, until: int) -> None:
        self._metric = metric
        self._index = index
        self.rows = rows
        self.until = until
        self.dead = 0

    @property
    def size_bytes(self) -> int:
        """Memory that the graph holds, about."""
        return len(self.rows) * (int(self._index.dim) * 4 + _GRAPH_BYTES_A_ROW) + 65_536 * 40

    def remove(self, rows: Rows) -> None:
        """Marks rows that the graph has as deleted."""
        for row in rows.tolist():
            self._index.mark_deleted(row)
        self.dead += len(rows)

    def search(self, query: Vectors, k: int, ef: int, allowed: Mask | None) -> Rows | None:
        """The nearest rows; None where the walk found fewer than it was asked for."""
        k = min(k, len(self.rows) - self.dead)
        if k <= 0:
            return np.empty(0, np.int64)
        self._index.set_ef(max(ef, k))
        # bytes.__getitem__ is the cheapest callback there is.
        wanted = None if allowed is None else allowed.tobytes().__getitem__
        try:
            labels, _distances = self._index.knn_query(query, k, num_threads=1, filter=wanted)
        except RuntimeError:
            return None
        return np.asarray(labels[0], np.int64)


def build_graph(plan: GraphPlan, stop: threading.Event) -> Graph | None:
    """Builds a graph; blocks for seconds, so call it in a thread. None if stopped."""
    space = "l2" if plan.metric is Metric.L2 else "ip"
    index = hnswlib.Index(space, plan.vectors.shape[1])
    index.init_index(max(1, len(plan.rows)), M=_M, ef_construction=_EF_CONSTRUCTION, random_seed=100)
    for start in range(0, len(plan.rows), _BUILD_BATCH):
        if stop.is_set():
            return None
        rows = plan.rows[start : start + _BUILD_BATCH]
        vectors = plan.vectors[rows]
        if plan.metric is Metric.COSINE:
            vectors = _unit(vectors)
        index.add_items(vectors, rows, num_threads=1)
    return Graph(plan.metric, index, plan.rows, plan.until)


class VectorIndex:
    """The vectors of a collection, by row."""

    def __init__(self, dimension: int, metric: Metric) -> None:
        self.dimension = dimension
        self.metric = metric
        self._vectors: Growable[np.float32] = Growable(np.float32, dimension)
        # COSINE: one over the length of each vector.
        self._scale: Growable[np.float32] = Growable(np.float32)
        self._live: Growable[np.bool_] = Growable(np.bool_)
        self._graph: Graph | None = None
        self._dead = 0
        # While somebody reads frozen rows in another thread, wiping waits.
        self._pins = 0
        self._unwiped: list[Rows] = []

    @property
    def rows(self) -> int:
        """Rows ever given, dead ones too."""
        return self._live.count

    @property
    def alive(self) -> int:
        """Rows that live."""
        return self._live.count - self._dead

    @property
    def dead(self) -> int:
        """Rows that are deleted but still take memory."""
        return self._dead

    @property
    def live(self) -> Mask:
        """Which rows live; only this class writes into it."""
        return self._live.view()

    @property
    def graph(self) -> Graph | None:
        """The graph that serves queries, if there is one."""
        return self._graph

    @property
    def size_bytes(self) -> int:
        """Memory that is held."""
        arrays = self._vectors.size_bytes + self._scale.size_bytes + self._live.size_bytes
        return arrays + (self._graph.size_bytes if self._graph else 0)

    def reserve(self, vectors: Vectors) -> int:
        """Takes rows for vectors, dead until `publish`; returns the first row."""
        if self.metric is Metric.COSINE:
            self._scale.extend(1.0 / _lengths(vectors))
        self._vectors.extend(vectors)
        first = self._live.extend(np.zeros(len(vectors), np.bool_))
        self._dead += len(vectors)
        return first

    def publish(self, first: int, count: int) -> None:
        """Brings reserved rows to life."""
        self._live.view()[first : first + count] = True
        self._dead -= count

    def remove(self, rows: Rows) -> None:
        """Deletes living rows and wipes their vectors."""
        self._live.view()[rows] = False
        self._unwiped.append(rows)
        self._wipe()
        self._dead += len(rows)
        if self._graph is not None:
            self._graph.remove(rows[rows < self._graph.until])

    def vectors(self, rows: Rows) -> Vectors:
        """The vectors of rows, as they were given."""
        taken: Vectors = self._vectors.view()[rows]
        return taken

    def freeze(self) -> tuple[Vectors, Mask]:
        """The present vectors and who lives, which stay as they are for another thread until `thaw`."""
        self._pins += 1
        return self._vectors.view(), self._live.view().copy()

    def thaw(self) -> None:
        """Ends one `freeze` or `plan_graph`."""
        self._pins -= 1
        self._wipe()

    def search(self, query: Vectors, k: int, ef: int = 0, allowed: Mask | None = None) -> Found:
        """The `k` nearest living rows among the allowed ones; all rows where `allowed` is None.

        `allowed` has been masked with `live`. `ef` bounds the walk through the graph; 0 is the default.
        """
        if self.metric is Metric.COSINE:
            query = _unit(query[np.newaxis, :])[0]
        # A few more than asked for: single precision may misorder the last places.
        wanted = k + 8
        if allowed is not None and np.count_nonzero(allowed) <= _GATHER_MAX:
            rows = self._nearest_of(query, np.flatnonzero(allowed), wanted)
        elif self._graph is None:
            rows = self._scan(query, 0, wanted, allowed)
        else:
            rows = self._walk(self._graph, query, wanted, ef, allowed)
        return self._ranked(query, rows, k)

    def wants_graph(self) -> bool:
        """Whether a new graph would pay: the exact part is large, or the graph is full of dead rows."""
        if self.alive <= FLAT_MAX:
            return False
        if self._graph is None:
            return True
        tail = self.rows - self._graph.until
        full = len(self._graph.rows)
        return tail > max(FLAT_MAX, full // 2) or self._graph.dead > full * _DEAD_SHARE_MAX

    def would_like_graph(self) -> bool:
        """Whether a new graph would help if there is nothing else to do."""
        if self._graph is None or self.alive <= FLAT_MAX:
            return False
        tail = self.rows - self._graph.until
        return tail > max(_TAIL_MIN, len(self._graph.rows) // 10)

    def plan_graph(self) -> GraphPlan:
        """What to build a graph of the present rows from; they stay as they are until `thaw`."""
        self._pins += 1
        rows = np.flatnonzero(self._live.view())
        return GraphPlan(self.metric, self._vectors.view(), rows, self.rows)

    def adopt_graph(self, graph: Graph) -> None:
        """Serves queries from a graph that was planned here; rows deleted since are marked first."""
        alive = self._live.view()[graph.rows]
        graph.remove(graph.rows[~alive])
        self._graph = graph

    def _wipe(self) -> None:
        if not self._pins:
            for rows in self._unwiped:
                self._vectors.view()[rows] = 0.0
            self._unwiped.clear()

    def _walk(self, graph: Graph, query: Vectors, wanted: int, ef: int, allowed: Mask | None) -> Rows:
        near = graph.search(query, wanted, ef or max(EF_DEFAULT, 2 * wanted), allowed)
        if near is None:
            return self._scan(query, 0, wanted, allowed)
        return np.concatenate([near, self._scan(query, graph.until, wanted, allowed)])

    def _scan(self, query: Vectors, start: int, wanted: int, allowed: Mask | None) -> Rows:
        live = self._live.view(start) if allowed is None else allowed[start:]
        nearness = self._nearness(query, self._vectors.view(start), self._scale.view(start))
        nearness[~live] = -np.inf
        rows = _top(nearness, wanted)
        kept: Rows = rows[live[rows]] + start
        return kept

    def _nearest_of(self, query: Vectors, rows: Rows, wanted: int) -> Rows:
        scale = self._scale.view()[rows] if self.metric is Metric.COSINE else self._scale.view()
        nearness = self._nearness(query, self._vectors.view()[rows], scale)
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
        vectors = self._vectors.view()[rows].astype(np.float64)
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


def _top(nearness: Vectors, count: int) -> Rows:
    if count >= len(nearness):
        return np.arange(len(nearness))
    return np.argpartition(nearness, len(nearness) - count)[-count:]


def _lengths(vectors: Vectors) -> Vectors:
    # Double precision: the squares of very short or long vectors leave the range of single.
    return np.asarray(np.linalg.norm(vectors.astype(np.float64), axis=1), np.float32)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.maximum(_lengths(vectors), np.float32(1e-30))
    return np.asarray(vectors / lengths[:, np.newaxis], np.float32)
