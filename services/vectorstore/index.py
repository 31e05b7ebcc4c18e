"""The vector index of one collection: exact while small, HNSW with an exact tail when large.

A graph (graph.py) is built in another thread from rows that never change, and then serves queries; it must
never be added to. Rows that came later are scanned exactly, until they are many enough for a new graph.

A row is a number that is given once and never again; the rows of deleted points are wiped at once
in the matrix, in the graph when it is next built.
"""

from __future__ import annotations

import numpy as np

from services.vectorstore.arrays import Growable
from services.vectorstore.graph import Graph, GraphPlan, build_graph, unpack_graph
from services.vectorstore.nearest import Found, Mask, Metric, Rows, Sight, Vectors, lengths_of

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


def load_graph(raw: memoryview, into: VectorIndex, places: Rows | None = None) -> Graph | None:
    """A graph that `Graph.pack` gave, for an index that has its rows; see graph.py. Raises BadShape."""
    return unpack_graph(raw, into.metric, into.every_vector, places)


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

    def expect(self, rows: int) -> None:
        """Makes room at once for so many more rows, before they come in parts."""
        self._vectors.expect(rows)
        self._live.expect(rows)
        if self.metric is Metric.COSINE:
            self._scale.expect(rows)

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

    @property
    def every_vector(self) -> Vectors:
        """The vectors of all rows."""
        return self._vectors.view()

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
