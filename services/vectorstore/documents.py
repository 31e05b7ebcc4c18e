"""The state of a text collection: documents and their passages.

A document's record and its passages come and go together. Filters and principals are the
document's, so they are resolved to documents first and then to the rows of their passages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.vectorstore.arrays import Growable
from services.vectorstore.columns import Columns, Indexed
from services.vectorstore.filters import Filter, resolve
from services.vectorstore.index import Mask, Metric, Rows
from services.vectorstore.lexical import LexicalIndex, analyse
from services.vectorstore.metadata import fields_of
from services.vectorstore.operations import (
    DeleteDocument,
    Document,
    Operation,
    Passage,
    PutDocument,
)
from services.vectorstore.reader import DataDamaged
from services.vectorstore.state import Capture, Look, Point, State, Steps

_PRINCIPAL = "principal"
_ROW_BYTES = 250
_DOCUMENT_BYTES = 1500
# What a passage and a document take in a segment beside vectors, texts and metadata, about.
_STORED_PASSAGE_BYTES = 40
_STORED_DOCUMENT_BYTES = 400


@dataclass(frozen=True, slots=True)
class Stored:
    """A document with the rows of its passages; `number` is its place in the columns."""

    document: Document
    number: int
    first: int
    count: int


class DocumentState(State):
    """Documents by id, passages by row."""

    def __init__(self, dimension: int, metric: Metric, indexed: Indexed = None) -> None:
        super().__init__(dimension, metric, indexed)
        self.lexical = LexicalIndex()
        self.next_sequence = 1
        self._principals = Columns()
        self._stored: dict[str, Stored] = {}
        self._by_key: dict[str, str] = {}
        # Sequences and ids in the order of creation.
        self._order: list[tuple[int, str]] = []
        # By number of the document.
        self._numbered: list[Stored | None] = []
        self._alive: Growable[np.bool_] = Growable(np.bool_)
        self._open: Growable[np.bool_] = Growable(np.bool_)
        self._restricted = 0
        # By row.
        self._owner: Growable[np.int32] = Growable(np.int32)
        self._passages: list[Passage | None] = []
        self._content_bytes = 0

    @property
    def documents(self) -> int:
        """Documents that are there."""
        return len(self._stored)

    @property
    def numbers(self) -> int:
        """Numbers of documents ever given, dead ones too."""
        return len(self._numbered)

    @property
    def next_number(self) -> int:
        """The next document's sequence."""
        return self.next_sequence

    @property
    def size_bytes(self) -> int:
        """Memory that the state holds, about."""
        parts = self.index.size_bytes + self.columns.size_bytes + self.lexical.size_bytes
        rows = _ROW_BYTES * len(self._passages) + _DOCUMENT_BYTES * len(self._numbered)
        return parts + self._principals.size_bytes + rows + self._content_bytes

    def steps(self, operation: Operation) -> Steps:
        """Applies an operation on documents."""
        match operation:
            case PutDocument():
                yield from self._put(operation, lexical=True)
                return 1
            case DeleteDocument(id_):
                return self._delete(id_)
            case _:
                raise DataDamaged

    def restore(self, operation: PutDocument) -> None:
        """Puts a document whose postings come from a snapshot."""
        for _ in self._put(operation, lexical=False):
            pass

    def counts_after(self, operations: Sequence[Operation]) -> tuple[int, int]:
        """How many passages and documents there will be."""
        points, documents = self.points, self.documents
        for operation in operations:
            gone = ""
            if isinstance(operation, PutDocument):
                points, documents = points + len(operation.passages), documents + 1
                gone = operation.replaces
            elif isinstance(operation, DeleteDocument):
                gone = operation.id
            if gone in self._stored:
                points, documents = points - self._stored[gone].count, documents - 1
        return points, documents

    def document(self, id_: str) -> Stored | None:
        """A document."""
        return self._stored.get(id_)

    def document_by_key(self, idempotency_key: str) -> Stored | None:
        """The document that was put under an idempotency key."""
        id_ = self._by_key.get(idempotency_key)
        return None if id_ is None else self._stored[id_]

    def documents_after(self, sequence: int) -> Iterator[Stored]:
        """Documents in order of creation, those after a sequence."""
        start = bisect_right(self._order, (sequence, "\U0010ffff"))
        return (self._stored[id_] for _sequence, id_ in self._order[start:])

    def passage(self, row: int) -> tuple[Document, Passage]:
        """A living row's document and passage."""
        stored = self._numbered[int(self._owner.view()[row])]
        passage = self._passages[row]
        if stored is None or passage is None:
            raise LookupError("a dead row")
        return stored.document, passage

    def owners(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The number of the document that each row is of."""
        return self._owner.view()[rows]

    def point(self, row: int) -> Point:
        """A living row; its metadata is its document's."""
        document, passage = self.passage(row)
        return Point(row, _point_id(document.id, passage.index), document.metadata, passage.text)

    def id_of(self, row: int) -> str:
        """The id of a living row."""
        document, passage = self.passage(row)
        return _point_id(document.id, passage.index)

    def row_of(self, id_: str) -> int | None:
        """The row of `<document id>#<index>`, open to everybody."""
        stored = self._stored.get(id_.partition("#")[0])
        if stored is None or not self._open.view()[stored.number]:
            return None
        for row in range(stored.first, stored.first + stored.count):
            passage = self._passages[row]
            if passage is not None and _point_id(stored.document.id, passage.index) == id_:
                return row
        return None

    def look(self) -> Look:
        """Which rows and documents there are."""
        return Look(
            self.index.live.copy(),
            self._alive.view().copy(),
            self._open.view(),
            self._restricted > 0,
            self._owner.view(),
        )

    def seen(self, look: Look, condition: Filter | None, principals: Sequence[str] = ()) -> Mask | None:
        """The rows of documents that match and are open, or open to one of the principals."""
        if condition is None and not look.restricted:
            return None
        seen = look.open & look.alive
        if principals:
            may = self._principals.one_of(_PRINCIPAL, principals, len(seen))
            seen |= may & look.alive
        if condition is not None:
            # Of the documents that may be seen alone: even an error must not tell of others.
            seen = resolve(condition, self.columns, seen)
        mask: Mask = seen[look.owner] & look.live
        return mask

    def capture(self) -> DocumentCapture:
        """The present state for another thread."""
        return DocumentCapture(self, list(self._stored.values()), list(self._passages))

    def _ids(self) -> Iterator[str]:
        for stored in self._stored.values():
            if self._open.view()[stored.number]:
                for passage in self._passages[stored.first : stored.first + stored.count]:
                    if passage is not None:
                        yield _point_id(stored.document.id, passage.index)

    def _put(self, operation: PutDocument, *, lexical: bool) -> Iterator[None]:
        document, count = operation.document, len(operation.passages)
        if document.id in self._stored and operation.replaces != document.id:
            raise DataDamaged
        first = self.index.reserve(operation.vectors)
        number = self._alive.extend([False])
        self._open.extend([not document.principals])
        self._owner.extend([number] * count)
        self._passages.extend(operation.passages)
        self._numbered.append(None)
        if lexical:
            yield from self.lexical.add(
                first, operation.analysed or analyse([passage.text for passage in operation.passages])
            )
            self.lexical.publish(first, count)
        # From here to the end nothing yields: the document shows as a whole, never beside its older version.
        if operation.replaces:
            self._delete(operation.replaces)
        self.columns.add(number, fields_of(document.metadata))
        if document.principals:
            self._principals.add(number, {_PRINCIPAL: document.principals})
            self._restricted += 1
        stored = Stored(document, number, first, count)
        self._numbered[number] = self._stored[document.id] = stored
        self._order.append((document.sequence, document.id))
        self.next_sequence = document.sequence + 1
        if document.idempotency_key:
            self._by_key[document.idempotency_key] = document.id
        self._content_bytes += sum(len(passage.text) for passage in operation.passages)
        self._alive.view()[number] = True
        self.index.publish(first, count)
        self._changed()

    def _delete(self, id_: str) -> int:
        stored = self._stored.pop(id_, None)
        if stored is None:
            return 0
        rows = np.arange(stored.first, stored.first + stored.count)
        self.index.remove(rows)
        self.lexical.remove(rows)
        self._alive.view()[stored.number] = False
        self._numbered[stored.number] = None
        self._restricted -= bool(stored.document.principals)
        if self._by_key.get(stored.document.idempotency_key) == id_:
            del self._by_key[stored.document.idempotency_key]
        position = bisect_right(self._order, (stored.document.sequence, ""))
        del self._order[position]
        for row in rows.tolist():
            passage = self._passages[row]
            self._content_bytes -= len(passage.text) if passage else 0
            self._passages[row] = None
        self._changed()
        return 1


class DocumentCapture(Capture):
    """The documents as they were; an item is a document, by its number."""

    text = True

    def __init__(self, state: DocumentState, stored: list[Stored], passages: list[Passage | None]) -> None:
        self._state = state
        self._vectors, self.live = state.index.freeze()
        self.graph = state.index.graph
        self.live_items = np.zeros(state.numbers, np.bool_)
        self._stored, self._passages = {document.number: document for document in stored}, passages
        self.live_items[list(self._stored)] = True

    def sizes(self, items: Rows) -> npt.NDArray[np.int64]:
        """Vectors, texts, postings, and what stands in the record."""
        return np.fromiter(map(self._size, items.tolist()), np.int64, len(items))

    def rows_of(self, items: Rows) -> npt.NDArray[np.int64]:
        """One for each passage."""
        counts = (self._stored[number].count for number in items.tolist())
        return np.fromiter(counts, np.int64, len(items))

    def operations(self, items: Rows) -> Iterator[Operation]:
        """Puts of the documents, in order of creation, which is the order of their rows."""
        for number in items.tolist():
            stored = self._stored[number]
            rows = slice(stored.first, stored.first + stored.count)
            yield PutDocument(stored.document, self._of(stored), self._vectors[rows])

    def postings(self, items: Rows) -> Iterator[tuple[str, bytes]]:
        """The postings of their rows."""
        return iter(self._state.lexical.dump(self._rows(items)))

    def lengths(self, items: Rows) -> bytes:
        """The lengths of their passages."""
        return self._state.lexical.dump_lengths(self._rows(items)).astype("<u4").tobytes()

    def release(self) -> None:
        """Lets deleted vectors be wiped again."""
        self._state.index.thaw()

    def _rows(self, items: Rows) -> Mask:
        rows = np.zeros(len(self.live), np.bool_)
        for number in items.tolist():
            stored = self._stored[number]
            rows[stored.first : stored.first + stored.count] = True
        return rows

    def _of(self, stored: Stored) -> list[Passage]:
        rows = slice(stored.first, stored.first + stored.count)
        return [passage for passage in self._passages[rows] if passage is not None]

    def _size(self, number: int) -> int:
        stored = self._stored[number]
        texts = sum(len(passage.text.encode()) for passage in self._of(stored))
        vectors: int = stored.count * (4 * self._vectors.shape[1] + _STORED_PASSAGE_BYTES)
        # A text's postings take less than it does.
        return len(stored.document.metadata) + 2 * texts + vectors + _STORED_DOCUMENT_BYTES


def _point_id(document_id: str, index: int) -> str:
    return f"{document_id}#{index:05d}"
