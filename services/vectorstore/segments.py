"""What is in the parts of a snapshot: segments with items, and the graph over them.

A segment's plaintext, little-endian, with texts and bytes as in operations.py:

    8    magic "SCSEGM01"
    u8   kind: 1 points, 2 documents
    u32  dimension
    u32  number of items
    u64  ordinal of each item, ascending
    text analyser of the lexical index
    then sections: u8 tag, u64 length, content; in this order
         1 operations that make the items; any number of sections
         2 lengths of the passages (u32 each)
         3 postings: (text term, bytes postings) repeated, rows from 0 on; any number
         0 end, empty

A graph's plaintext:

    8    magic "SCGRAP01"
    u32  number of items that lived when it was packed
    u64  ordinal of each, ascending
    u32  rows of each
    then the graph (shape.py), whose rows are those of these items, from 0 on

Both were authenticated before they come here; what does not parse is DataDamaged all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import numpy as np

from services.vectorstore.columns import Indexed
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Graph, Mask, Metric, load_graph
from services.vectorstore.layout import Items, Ordinals
from services.vectorstore.lexical import ANALYSER
from services.vectorstore.manifest import DOCUMENTS, POINTS
from services.vectorstore.operations import (
    Operation,
    PutDocument,
    UpsertPoints,
    decode,
    encode,
    length_prefixed,
)
from services.vectorstore.points import PointState
from services.vectorstore.reader import DataDamaged, Reader
from services.vectorstore.shape import BadShape
from services.vectorstore.state import Capture, State

_SEGMENT_MAGIC, _GRAPH_MAGIC = b"SCSEGM01", b"SCGRAP01"
_PREFIX = struct.Struct("<8sBII")
_SECTION = struct.Struct("<BQ")
_U32 = struct.Struct("<I")
END, OPERATIONS, LENGTHS, POSTINGS = 0, 1, 2, 3
_CHUNK_BYTES = 256 * 1024


def dump_segment(capture: Capture, items: Items, ordinals: Ordinals, dimension: int) -> Iterator[bytes]:
    """A segment with these items of a capture, in chunks; for another thread."""
    kind = DOCUMENTS if capture.text else POINTS
    yield _PREFIX.pack(_SEGMENT_MAGIC, kind, dimension, len(items)) + ordinals.astype("<u8").tobytes()
    yield length_prefixed(ANALYSER.encode())
    for operation in capture.operations(items):
        yield _section(OPERATIONS, encode([operation]))
    if capture.text:
        yield _section(LENGTHS, capture.lengths(items))
        gathered: list[bytes] = []
        size = 0
        for term, postings in capture.postings(items):
            gathered += (length_prefixed(term.encode()), length_prefixed(postings))
            size += len(postings)
            if size > _CHUNK_BYTES:
                yield _section(POSTINGS, b"".join(gathered))
                gathered, size = [], 0
        yield _section(POSTINGS, b"".join(gathered))
    yield _section(END, b"")


def load_segment(raw: bytes | bytearray, into: State, gone: Mask | None) -> Ordinals:
    """Adds a segment's items to a state, but for those that are gone; the ordinals of all of them."""
    reader = Reader(raw)
    magic, kind, dimension, count = _PREFIX.unpack(reader.take(_PREFIX.size))
    text = isinstance(into, DocumentState)
    if (magic, kind == DOCUMENTS, dimension) != (_SEGMENT_MAGIC, text, into.index.dimension):
        raise DataDamaged
    ordinals = np.frombuffer(reader.take(8 * count), "<u8").astype(np.uint64)
    if (
        not count
        or (np.diff(ordinals.astype(np.int64)) <= 0).any()
        or (gone is not None and len(gone) != count)
    ):
        raise DataDamaged
    same_analyser = reader.text() == ANALYSER
    there = np.ones(count, np.bool_) if gone is None else ~gone
    operations, lengths, postings = _sections(reader, dimension)
    if isinstance(into, DocumentState):
        _load_documents(into, operations, there, lengths if same_analyser else None, postings)
    else:
        _load_points(into, operations, there)
    return ordinals


def new_state(text: bool, dimension: int, metric: Metric, indexed: Indexed = None) -> State:
    """The empty state of a collection; the fields that filters may name."""
    kind = DocumentState if text else PointState
    return kind(dimension, metric, indexed)


def dump_graph(capture: Capture, graph: Graph, ordinals: Ordinals) -> Iterator[bytes]:
    """The graph's part; nothing where none of its rows lives. `ordinals` are those of the capture's items."""
    packed = capture.pack(graph)
    if packed:
        items = capture.live_items.nonzero()[0]
        yield _GRAPH_MAGIC + _U32.pack(len(items)) + ordinals[items].astype("<u8").tobytes()
        yield capture.rows_of(items).astype("<u4").tobytes()
        yield packed


def adopt_graph(raw: bytes | bytearray, into: State, ordinals: Ordinals) -> None:
    """Gives a state that was just loaded its graph; `ordinals` are those of its items.

    Items that came later or are gone are no hindrance; where all are gone there is no graph.
    """
    reader = Reader(raw)
    if reader.take(8) != _GRAPH_MAGIC:
        raise DataDamaged
    count = reader.u32()
    covered = np.frombuffer(reader.take(8 * count), "<u8").astype(np.uint64)
    rows_of = np.frombuffer(reader.take(4 * count), "<u4").astype(np.int64)
    there = np.isin(covered, ordinals, assume_unique=True)
    rows = np.where(there, rows_of, 0)
    # By row of the part: the state's row. The items that are there are the state's first, in order.
    firsts = np.cumsum(rows) - rows
    begins = np.cumsum(rows_of) - rows_of
    within = np.arange(int(rows_of.sum())) - np.repeat(begins, rows_of)
    places = np.where(np.repeat(there, rows_of), np.repeat(firsts, rows_of) + within, -1)
    try:
        graph = load_graph(reader.rest(), into.index, places)
    except BadShape:
        raise DataDamaged from None
    if graph is not None:
        into.index.adopt_graph(graph)


def _load_points(into: State, operations: Iterable[Operation], there: Mask) -> None:
    at = 0
    for operation in operations:
        if not isinstance(operation, UpsertPoints) or not operation.versions:
            raise DataDamaged
        end = at + len(operation.ids)
        if end > len(there):
            raise DataDamaged
        into.apply(_only(operation, there[at:end]))
        at = end
    if at != len(there):
        raise DataDamaged


def _only(operation: UpsertPoints, there: Mask) -> UpsertPoints:
    if there.all():
        return operation
    kept = there.nonzero()[0].tolist()
    versions = operation.versions or ()
    return UpsertPoints(
        [operation.ids[place] for place in kept],
        operation.vectors[kept],
        [operation.metadata[place] for place in kept],
        [operation.texts[place] for place in kept],
        [versions[place] for place in kept],
    )


def _load_documents(
    into: DocumentState,
    operations: Iterable[Operation],
    there: Mask,
    lengths: bytes | None,
    postings: Iterable[memoryview],
) -> None:
    """Documents with their postings; without `lengths` those are made anew."""
    counts, at = [], 0
    for operation in operations:
        if not isinstance(operation, PutDocument) or at == len(there):
            raise DataDamaged
        counts.append(len(operation.passages))
        if there[at] and lengths is None:
            into.apply(operation)
        elif there[at]:
            into.restore(operation)
        at += 1
    if at != len(there):
        raise DataDamaged
    if lengths is not None:
        numbers = np.frombuffer(lengths, "<u4")
        kept = np.repeat(there, counts)
        if len(numbers) != len(kept):
            raise DataDamaged
        into.lexical.load(numbers, read_postings(postings), kept)


def _sections(reader: Reader, dimension: int) -> tuple[Iterator[Operation], bytes, list[memoryview]]:
    operations: list[memoryview] = []
    postings: list[memoryview] = []
    lengths = b""
    while True:
        tag, size = reader.u8(), reader.u64()
        content = reader.take(size)
        if tag == OPERATIONS:
            operations.append(content)
        elif tag == LENGTHS:
            lengths = bytes(content)
        elif tag == POSTINGS:
            postings.append(content)
        elif tag == END and reader.at_end:
            break
        else:
            raise DataDamaged
    made = (operation for content in operations for operation in decode(content, dimension))
    return made, lengths, postings


def read_postings(sections: Iterable[memoryview]) -> Iterator[tuple[str, bytes]]:
    """The postings in sections, by term."""
    for section in sections:
        reader = Reader(section)
        while not reader.at_end:
            yield reader.text(), reader.raw()


def _section(tag: int, content: bytes) -> bytes:
    return _SECTION.pack(tag, len(content)) + content
