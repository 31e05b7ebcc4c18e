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
from services.vectorstore.index import Mask, Metric, Rows, VectorIndex
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
    """A state as it was at one moment, for another thread. `release` it on the event loop."""

    @abc.abstractmethod
    def operations(self) -> Iterator[Operation]:
        """Operations that make the captured state from nothing."""

    @abc.abstractmethod
    def postings(self) -> Iterator[tuple[str, bytes]]:
        """The lexical index for the state that `operations` makes: postings by term."""

    @abc.abstractmethod
    def lengths(self) -> bytes:
        """The lengths of its passages, u32 each."""

    @abc.abstractmethod
    def graph(self) -> bytes:
        """The graph for the state that `operations` makes; empty if there is none."""

    @abc.abstractmethod
    def release(self) -> None:
        """Lets the state wipe again what was deleted."""


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
