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

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import hnswlib
import numpy as np

from services.vectorstore.arrays import Growable
from services.vectorstore.nearest import Found, Mask, Metric, Rows, Sight, Vectors, lengths_of, unit
from services.vectorstore.shape import (
    EF_CONSTRUCTION,
    BadShape,
    M,
    Shape,
    index_bytes,
    pack,
    shape_of,
    unpack,
)

__all__ = [
    "Found",
    "Graph",
    "GraphPlan",
    "Mask",
    "Metric",
    "Rows",
    "VectorIndex",
    "Vectors",
    "build_graph",
    "load_graph",
]

FLAT_MAX = 8_000
_TAIL_MIN = 2_000
_DEAD_SHARE_MAX = 0.3
_BUILD_BATCH = 256
_GRAPH_BYTES_A_ROW = 4 * (2 * M + 2) + 48


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """What a graph is to be built from; safe to use in another thread."""

    metric: Metric
    vectors: Vectors
    rows: Rows
    until: int


class Graph:
    """An HNSW graph over rows that were alive when it was planned; its labels are the rows.

    `rows` are those of its elements in their order, -1 for those that were dead when it was loaded.
    """

    def __init__(self, index: hnswlib.Index, shape: Shape, rows: Rows, until: int) -> None:
        self._index = index
        self._shape = shape
        self.rows = rows
        self.until = until
        self.dead = int(np.count_nonzero(rows < 0))
        # `ef` belongs to the index, not to a query, and queries of several threads overlap.
        self._lock = threading.Lock()
        self._frontiers: list[int] = []

    @property
    def size_bytes(self) -> int:
        """Memory that the graph holds, about."""
        rows = len(self.rows) * (int(self._index.dim) * 4 + _GRAPH_BYTES_A_ROW)
        return rows + 65_536 * 40 + self._shape.size_bytes

    def remove(self, rows: Rows) -> None:
        """Marks rows that the graph has as deleted."""
        for row in rows.tolist():
            self._index.mark_deleted(row)
        self.dead += len(rows)

    def pack(self, live: Mask) -> bytes:
        """The graph without its vectors, for a collection whose living rows are numbered anew from 0.

        Nothing where none of its rows lives.
        """
        there = (self.rows >= 0) & live[self.rows]
        if not there.any():
            return b""
        rows = np.where(there, (np.cumsum(live) - 1)[self.rows], -1)
        return pack(self._shape, rows, int(np.count_nonzero(live[: self.until])))

    def search(self, query: Vectors, k: int, ef: int, allowed: Mask | None) -> Rows | None:
        """The nearest rows; None where the walk found fewer than it was asked for."""
        k = min(k, len(self.rows) - self.dead)
        if k <= 0:
            return np.empty(0, np.int64)
        ef = max(ef, k)
        # bytes.__getitem__ is the cheapest callback there is.
        wanted = None if allowed is None else allowed.tobytes().__getitem__
        with self._lock:
            self._frontiers.append(ef)
            self._index.set_ef(max(self._frontiers))
        try:
            labels, _distances = self._index.knn_query(query, k, num_threads=1, filter=wanted)
        except RuntimeError:
            return None
        finally:
            with self._lock:
                self._frontiers.remove(ef)
        return np.asarray(labels[0], np.int64)


def build_graph(plan: GraphPlan, stop: threading.Event) -> Graph | None:
    """Builds a graph; blocks for seconds, so call it in a thread. None if stopped."""
    index = hnswlib.Index(_space(plan.metric), plan.vectors.shape[1])
    index.init_index(max(1, len(plan.rows)), M=M, ef_construction=EF_CONSTRUCTION, random_seed=100)
    for start in range(0, len(plan.rows), _BUILD_BATCH):
        if stop.is_set():
            return None
        rows = plan.rows[start : start + _BUILD_BATCH]
        vectors = plan.vectors[rows]
        if plan.metric is Metric.COSINE:
            vectors = unit(vectors)
        index.add_items(vectors, rows, num_threads=1)
    return Graph(index, _shape(index, plan.rows), plan.rows, plan.until)


def load_graph(raw: memoryview, into: VectorIndex) -> Graph:
    """A graph that `pack` gave, for an index that has its rows; in a thread. Raises BadShape."""
    shape, rows, until = unpack(raw)
    if until > into.rows or not (rows >= 0).any():
        raise BadShape
    vectors = into.vectors(rows)
    if into.metric is Metric.COSINE:
        vectors = unit(vectors)
    index = hnswlib.Index(_space(into.metric), into.dimension)
    with _memory(index_bytes(shape, rows, into.rows, vectors)) as path:
        index.load_index(path, max_elements=len(rows))
    return Graph(index, shape, rows, until)


def _space(metric: Metric) -> str:
    return "l2" if metric is Metric.L2 else "ip"


def _shape(index: hnswlib.Index, rows: Rows) -> Shape:
    with _memory(()) as path:
        index.save_index(path)
        with open(path, "rb") as file:
            return shape_of(memoryview(file.read()), rows)


@contextmanager
def _memory(parts: Iterable[bytes]) -> Iterator[str]:
    """A path that hnswlib can save to and load from, and that is on no disk."""
    descriptor = os.memfd_create("graph", os.MFD_CLOEXEC)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


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
            self._scale.extend(1.0 / lengths_of(vectors))
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

    def sight(self, live: Mask) -> Sight:
        """The rows as they are now, to be searched here or in another thread; `live` is a copy of its own."""
        return Sight(self.metric, self._vectors.view(), self._scale.view(), live, self._graph)

    def search(self, query: Vectors, k: int, ef: int = 0, allowed: Mask | None = None) -> Found:
        """See Sight; for the event loop."""
        return self.sight(self._live.view()).search(query, k, ef, allowed)

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
        rows = graph.rows[graph.rows >= 0]
        graph.remove(rows[~self._live.view()[rows]])
        self._graph = graph

    def _wipe(self) -> None:
        if not self._pins:
            for rows in self._unwiped:
                self._vectors.view()[rows] = 0.0
            self._unwiped.clear()
