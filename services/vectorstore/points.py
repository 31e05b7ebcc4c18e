"""The state of a collection whose vectors the caller brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from services.vectorstore.arrays import Growable
from services.vectorstore.columns import Indexed
from services.vectorstore.filters import Filter, resolve
from services.vectorstore.index import Mask, Metric, Rows, VectorIndex, Vectors
from services.vectorstore.metadata import fields_of
from services.vectorstore.operations import DeletePoints, Operation, UpdatePoints, UpsertPoints
from services.vectorstore.reader import DataDamaged
from services.vectorstore.state import Capture, Look, Point, State, Steps

_BATCH = 1000
# What a row takes beside its vector, metadata and text: strings, list places, the id's entry.
_ROW_BYTES = 300
# What a point takes in a segment beside its vector and contents.
_STORED_BYTES = 28


class PointState(State):
    """Points by id."""

    def __init__(self, dimension: int, metric: Metric, indexed: Indexed = None) -> None:
        super().__init__(dimension, metric, indexed)
        # The version that the next write gives.
        self.next_version = 1
        self._rows: dict[str, int] = {}
        # By row; empty for dead ones.
        self._ids_by_row: list[str] = []
        self._versions: Growable[np.uint64] = Growable(np.uint64)
        self._metadata: list[bytes] = []
        self._texts: list[str] = []
        self._content_bytes = 0

    @property
    def documents(self) -> int:
        """None: documents are in text collections."""
        return 0

    @property
    def next_number(self) -> int:
        """The next version."""
        return self.next_version

    @property
    def size_bytes(self) -> int:
        """Memory that the state holds, about."""
        rows = _ROW_BYTES * len(self._ids_by_row)
        return self.index.size_bytes + self.columns.size_bytes + rows + self._content_bytes

    def steps(self, operation: Operation) -> Steps:
        """Applies an operation on points."""
        match operation:
            case UpsertPoints():
                count = self._upsert(operation)
            case UpdatePoints():
                count = self._update(operation)
            case DeletePoints(ids):
                count = self._delete(ids)
            case _:
                raise DataDamaged
        self._changed()
        yield from ()
        return count

    def counts_after(self, operations: Sequence[Operation]) -> tuple[int, int]:
        """How many points there will be."""
        changed: dict[str, bool] = {}
        for operation in operations:
            if isinstance(operation, UpsertPoints):
                changed.update(dict.fromkeys(operation.ids, True))
            elif isinstance(operation, DeletePoints):
                changed.update(dict.fromkeys(operation.ids, False))
        return self.points + sum(there - (id_ in self._rows) for id_, there in changed.items()), 0

    def point(self, row: int) -> Point:
        """A living row."""
        version = int(self._versions.view()[row])
        return Point(row, self._ids_by_row[row], self._metadata[row], self._texts[row], version)

    def id_of(self, row: int) -> str:
        """A living row's id."""
        return self._ids_by_row[row]

    def version_of(self, id_: str) -> int:
        """The version of a point, 0 if it is not there."""
        row = self._rows.get(id_)
        return 0 if row is None else int(self._versions.view()[row])

    def row_of(self, id_: str) -> int | None:
        """The row of a point."""
        return self._rows.get(id_)

    def look(self) -> Look:
        """Which rows there are."""
        nothing = np.empty(0, np.bool_)
        return Look(self.index.live.copy(), nothing, nothing, False, np.empty(0, np.int32))

    def seen(self, look: Look, condition: Filter | None, principals: Sequence[str] = ()) -> Mask | None:
        """The rows that match; points know no principals."""
        return None if condition is None else resolve(condition, self.columns, look.live)

    def capture(self) -> PointCapture:
        """The present state for another thread."""
        versions = self._versions.view()
        return PointCapture(
            self.index, list(self._ids_by_row), versions, list(self._metadata), list(self._texts)
        )

    def _ids(self) -> Iterator[str]:
        return iter(self._rows)

    def _upsert(self, operation: UpsertPoints) -> int:
        first = self.index.reserve(operation.vectors)
        self._remove([id_ for id_ in operation.ids if id_ in self._rows])
        self._ids_by_row.extend(operation.ids)
        self._metadata.extend(operation.metadata)
        self._texts.extend(operation.texts)
        self._versions.extend(self._next_versions(operation))
        for row, (id_, metadata) in enumerate(zip(operation.ids, operation.metadata, strict=True), first):
            self._rows[id_] = row
            if metadata:
                self.columns.add(row, fields_of(metadata))
            self._content_bytes += len(metadata) + len(self._texts[row])
        self.index.publish(first, len(operation.ids))
        return len(operation.ids)

    def _next_versions(self, operation: UpsertPoints) -> Sequence[int]:
        versions: Sequence[int] | None = operation.versions
        if versions is None:
            versions = [self.next_version] * len(operation.ids)
        if versions:
            # What was loaded may be older than what is next: then that stays the next.
            self.next_version = max(self.next_version, max(versions) + 1)
        return versions

    def _update(self, operation: UpdatePoints) -> int:
        """Writes the points anew with their old vectors, since a row never changes under a search."""
        there = [place for place, id_ in enumerate(operation.ids) if id_ in self._rows]
        if not there:
            return 0
        ids = [operation.ids[place] for place in there]
        rows = [self._rows[id_] for id_ in ids]
        metadata, texts = [], []
        for place, row in zip(there, rows, strict=True):
            given, text = operation.metadata[place], operation.texts[place]
            metadata.append(self._metadata[row] if given is None else given)
            texts.append(self._texts[row] if text is None else text)
        # A copy, since the old rows are wiped.
        vectors = self.index.vectors(np.array(rows, np.int64))
        return self._upsert(UpsertPoints(ids, vectors, metadata, texts))

    def _delete(self, ids: Sequence[str]) -> int:
        there = [id_ for id_ in dict.fromkeys(ids) if id_ in self._rows]
        self._remove(there)
        return len(there)

    def _remove(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        rows = [self._rows.pop(id_) for id_ in ids]
        self.index.remove(np.array(rows, np.int64))
        for row in rows:
            self._content_bytes -= len(self._metadata[row]) + len(self._texts[row])
            self._ids_by_row[row], self._metadata[row], self._texts[row] = "", b"", ""


class PointCapture(Capture):
    """The points as they were; an item is a row."""

    text = False

    def __init__(
        self,
        index: VectorIndex,
        ids: list[str],
        versions: npt.NDArray[np.uint64],
        metadata: list[bytes],
        texts: list[str],
    ) -> None:
        self._index = index
        self._vectors, self.live = index.freeze()
        self.live_items = self.live
        self.graph = index.graph
        self._ids, self._versions, self._metadata, self._texts = ids, versions, metadata, texts

    def sizes(self, items: Rows) -> npt.NDArray[np.int64]:
        """A vector, what the caller gave beside it, and the numbers between."""
        content = (
            len(self._ids[row].encode()) + len(self._metadata[row]) + len(self._texts[row].encode())
            for row in items.tolist()
        )
        fixed = 4 * self._vectors.shape[1] + _STORED_BYTES
        sizes: npt.NDArray[np.int64] = np.fromiter(content, np.int64, len(items)) + fixed
        return sizes

    def rows_of(self, items: Rows) -> npt.NDArray[np.int64]:
        """One each."""
        return np.ones(len(items), np.int64)

    def operations(self, items: Rows) -> Iterator[Operation]:
        """Upserts of the points, in order of their rows."""
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            vectors: Vectors = self._vectors[part]
            places = part.tolist()
            yield UpsertPoints(
                [self._ids[row] for row in places],
                vectors,
                [self._metadata[row] for row in places],
                [self._texts[row] for row in places],
                self._versions[part].tolist(),
            )

    def postings(self, items: Rows) -> Iterator[tuple[str, bytes]]:
        """None: points have no lexical index."""
        return iter(())

    def lengths(self, items: Rows) -> bytes:
        """None."""
        return b""

    def release(self) -> None:
        """Lets deleted vectors be wiped again."""
        self._index.thaw()
