"""HNSW graphs over rows that never change.

The only module that knows hnswlib, and what it must never do with it (each seen to crash or to
lose data): query an index while it is resized or saved, add to an index that serves queries, ask it
for more neighbours than it has, load bytes that were not authenticated. So a graph is built once,
in another thread, and then serves queries; deletions only mark it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import hnswlib
import numpy as np

from services.vectorstore.nearest import Mask, Metric, Rows, Vectors, Walk, unit
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

    @property
    def alive(self) -> int:
        """Rows of the graph that live."""
        return len(self.rows) - self.dead

    def search(self, queries: Vectors, k: int, ef: int, threads: int = 1) -> Walk:
        """The nearest rows; see Walkable."""
        k = min(k, self.alive)
        if k <= 0:
            return Walk(np.empty((len(queries), 0), np.int64))
        ef = max(ef, k)
        with self._lock:
            self._frontiers.append(ef)
            self._index.set_ef(max(self._frontiers))
        try:
            labels, _distances = self._index.knn_query(queries, k, num_threads=threads)
        except RuntimeError:
            # A query found fewer than `k`.
            return Walk(None)
        finally:
            with self._lock:
                self._frontiers.remove(ef)
        return Walk(labels.astype(np.int64))


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


def unpack_graph(
    raw: memoryview, metric: Metric, vectors: Vectors, places: Rows | None = None
) -> Graph | None:
    """A graph that `pack` gave, for an index that has its rows; in a thread. Raises BadShape.

    `places` says which row of the index each packed one is, -1 for none; None where they are the same. The
    first rows of the index are those that are there. Nothing where none is.
    """
    shape, rows, until = unpack(raw)
    if places is not None:
        if until > len(places):
            raise BadShape
        rows = np.where(rows < 0, -1, places[rows])
        until = int(np.count_nonzero(places[:until] >= 0))
    if until > len(vectors):
        raise BadShape
    if not (rows >= 0).any():
        return None
    index = hnswlib.Index(_space(metric), vectors.shape[1])
    with _memory(index_bytes(shape, rows, vectors, as_unit=metric is Metric.COSINE)) as path:
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
def _memory(parts: Iterable[bytes | memoryview]) -> Iterator[str]:
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
