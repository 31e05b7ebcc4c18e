"""The state of an open collection: what all operations so far have made, in memory.

A state is a deterministic machine: the same operations in the same order make the same state, which
is what recovery relies on. It is changed on the event loop alone, by one writer; everything that
another thread needs is captured first.
"""

from __future__ import annotations

import abc
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.vectorstore.columns import Columns, Indexed
from services.vectorstore.filters import Filter
from services.vectorstore.index import Graph, Mask, Metric, Rows, VectorIndex
from services.vectorstore.operations import Operation

# Returns how many points or documents the operation wrote or removed.
Steps = Generator[None, None, int]


@dataclass(frozen=True, slots=True)
class Point:
    """A living row as the caller sees it; the metadata is a Struct's bytes. Passages have no version."""

    row: int
    id: str
    metadata: bytes
    text: str
    version: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """Which rows there are at one moment; copies, so that another thread may ask too.

    For documents: which are alive, which are open to everybody, whether any is not, and by row its document.
    """

    live: Mask
    alive: Mask
    open: Mask
    restricted: bool
    owner: npt.NDArray[np.int32]


class Capture(abc.ABC):
    """A state as it was at one moment, for another thread. `release` it on the event loop.

    An item is what comes and goes as a whole: a point, or a document with its passages. Items are numbered
    from 0 on in the order in which they were put, those that are gone too.
    """

    text: bool
    # By item, whether it lives.
    live_items: Mask
    graph: Graph | None
    # By row, whether it lives.
    live: Mask

    @abc.abstractmethod
    def sizes(self, items: Rows) -> npt.NDArray[np.int64]:
        """How many bytes each of some living items takes in storage, about."""

    @abc.abstractmethod
    def rows_of(self, items: Rows) -> npt.NDArray[np.int64]:
        """How many rows each of some living items has."""

    @abc.abstractmethod
    def operations(self, items: Rows) -> Iterator[Operation]:
        """Operations that make these living items, in their order."""

    @abc.abstractmethod
    def postings(self, items: Rows) -> Iterator[tuple[str, bytes]]:
        """Postings of these items by term, rows numbered as `operations` will number them."""

    @abc.abstractmethod
    def lengths(self, items: Rows) -> bytes:
        """The lengths of their passages, u32 each."""

    @abc.abstractmethod
    def release(self) -> None:
        """Lets the state wipe again what was deleted."""

    def pack(self, graph: Graph) -> bytes:
        """A graph of these rows, numbered as all living items will be; empty where none of its rows lives."""
        return graph.pack(self.live)


class State(abc.ABC):
    """What points and documents have in common: rows with vectors, ids and metadata."""

    def __init__(self, dimension: int, metric: Metric, indexed: Indexed) -> None:
        self.index = VectorIndex(dimension, metric)
        self.columns = Columns(indexed)
        self._in_order: list[str] | None = None

    @property
    def points(self) -> int:
        """Points, or passages, that are there."""
        return self.index.alive

    @property
    @abc.abstractmethod
    def documents(self) -> int:
        """Documents that are there."""

    @property
    @abc.abstractmethod
    def next_number(self) -> int:
        """The next document's sequence or points' version, kept in snapshots so that none is given twice."""

    @property
    @abc.abstractmethod
    def size_bytes(self) -> int:
        """Memory that the state holds, about."""

    @abc.abstractmethod
    def steps(self, operation: Operation) -> Steps:
        """Applies an operation, yielding now and then; it shows as a whole at the end."""

    @abc.abstractmethod
    def counts_after(self, operations: Sequence[Operation]) -> tuple[int, int]:
        """How many points and documents there will be after these operations."""

    @abc.abstractmethod
    def point(self, row: int) -> Point:
        """A living row."""

    @abc.abstractmethod
    def id_of(self, row: int) -> str:
        """The id of a living row's point."""

    @abc.abstractmethod
    def row_of(self, id_: str) -> int | None:
        """The row of a point's id."""

    @abc.abstractmethod
    def look(self) -> Look:
        """Which rows there are now."""

    @abc.abstractmethod
    def seen(self, look: Look, condition: Filter | None, principals: Sequence[str] = ()) -> Mask | None:
        """The rows of a look that match and may be seen; None for all. For any thread.

        Raises InvalidArgument for a comparison with a field that nothing has.
        """

    def allowed(self, condition: Filter | None, principals: Sequence[str] = ()) -> Mask | None:
        """The rows that match now and may be seen; see `seen`."""
        return self.seen(self.look(), condition, principals)

    def is_live(self, row: int) -> bool:
        """Whether a row is still there."""
        return bool(self.index.live[row])

    @abc.abstractmethod
    def capture(self) -> Capture:
        """The present state for another thread."""

    def apply(self, operation: Operation) -> int:
        """Applies an operation at once."""
        steps = self.steps(operation)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return int(end.value)

    def ids_after(self, position: str) -> Iterator[str]:
        """The ids of points in order, those after a position."""
        if self._in_order is None:
            self._in_order = sorted(self._ids())
        return iter(self._in_order[bisect_right(self._in_order, position) if position else 0 :])

    @abc.abstractmethod
    def _ids(self) -> Iterator[str]:
        """The ids of all points in any order."""

    def _changed(self) -> None:
        self._in_order = None


def living(rows: Mask) -> Rows:
    """The rows that a mask names."""
    found: Rows = rows.nonzero()[0]
    return found
