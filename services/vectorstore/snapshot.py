"""Snapshots: the whole state of a collection at one lsn as one sealed object.

The plaintext, little-endian, with texts and bytes as in operations.py:

    8    magic "SCSNAP01"
    u8   kind: 1 points, 2 documents
    u32  dimension
    u8   metric
    u64  lsn
    32   chain of the log at that lsn
    u64  next document sequence, or version of points (0 in snapshots without versions)
    text analyser of the lexical index
    then sections: u8 tag, u64 length, content; in this order
         1 operations that make the state from nothing; any number of sections
         2 lengths of the passages (u32 each)
         3 postings: (text term, bytes postings) repeated; any number
         4 graph of the vectors (shape.py), if there is one
         0 end, empty

Sealed as Identity(account, collection, "snapshot", version=lsn). The plaintext never touches a
disk, and no byte of it is parsed before the whole object was authenticated.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from services.common.errors import DataLoss
from services.common.sealing import DataKey, Opener, OpenFailed, Sealer
from services.vectorstore.columns import Indexed
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Metric, load_graph
from services.vectorstore.lexical import ANALYSER
from services.vectorstore.log import Scope
from services.vectorstore.operations import PutDocument, decode, encode
from services.vectorstore.points import PointState
from services.vectorstore.reader import DataDamaged, Reader
from services.vectorstore.shape import BadShape
from services.vectorstore.state import Capture, State

_MAGIC = b"SCSNAP01"
_PREFIX = struct.Struct("<8sBIBQ32sQ")
_SECTION = struct.Struct("<BQ")
_U32 = struct.Struct("<I")
_END, _OPERATIONS, _LENGTHS, _POSTINGS, _GRAPH = 0, 1, 2, 3, 4
_POINTS, _DOCUMENTS = 1, 2
_PART_BYTES = 256 * 1024
_SIZE_BYTES_MAX = 64 * 1024**3


class SnapshotBroken(DataLoss):
    """The snapshot's object is not the one that was written."""

    reason = "SNAPSHOT_BROKEN"

    def __init__(self) -> None:
        super().__init__("the collection's snapshot is missing or changed; restore it from a backup")


@dataclass(frozen=True, slots=True)
class Moment:
    """What a snapshot is of."""

    text: bool
    dimension: int
    metric: Metric
    lsn: int
    chain: bytes
    next_number: int


def seal_snapshot(key: DataKey, scope: Scope, lsn: int, parts: Iterable[bytes]) -> Iterator[bytes]:
    """The sealed object of a snapshot's plaintext, in parts."""
    sealer = Sealer(key, scope.identity("snapshot", lsn))
    for part in parts:
        yield sealer.update(part)
    yield sealer.finalize()


def open_snapshot(key: DataKey, scope: Scope, lsn: int, digest: bytes, parts: Iterable[bytes]) -> bytearray:
    """The plaintext of a sealed object, once all of it has proved right. Raises SnapshotBroken."""
    opener = Opener(key, scope.identity("snapshot", lsn))
    plaintext = bytearray()
    seen = hashlib.sha256()
    try:
        for part in parts:
            seen.update(part)
            plaintext += opener.update(part)
            if len(plaintext) > _SIZE_BYTES_MAX:
                raise SnapshotBroken
        plaintext += opener.finalize()
    except OpenFailed:
        raise SnapshotBroken from None
    if seen.digest() != digest:
        raise SnapshotBroken
    return plaintext


def dump(moment: Moment, capture: Capture) -> Iterator[bytes]:
    """The plaintext of a snapshot, in parts; for another thread."""
    kind = _DOCUMENTS if moment.text else _POINTS
    analyser = ANALYSER.encode()
    yield (
        _PREFIX.pack(
            _MAGIC,
            kind,
            moment.dimension,
            moment.metric.value,
            moment.lsn,
            moment.chain,
            moment.next_number,
        )
        + _U32.pack(len(analyser))
        + analyser
    )
    for operation in capture.operations():
        yield _section(_OPERATIONS, encode([operation]))
    if moment.text:
        yield _section(_LENGTHS, capture.lengths())
        gathered: list[bytes] = []
        size = 0
        for term, postings in capture.postings():
            raw = term.encode()
            gathered += (_U32.pack(len(raw)), raw, _U32.pack(len(postings)), postings)
            size += len(raw) + len(postings)
            if size > _PART_BYTES:
                yield _section(_POSTINGS, b"".join(gathered))
                gathered, size = [], 0
        yield _section(_POSTINGS, b"".join(gathered))
    graph = capture.graph()
    if graph:
        yield _section(_GRAPH, graph)
    yield _section(_END, b"")


def load(plaintext: bytes | bytearray, indexed: Indexed = None) -> tuple[Moment, State]:
    """What `dump` gave, as a state of its own. Raises DataDamaged."""
    reader = Reader(plaintext)
    try:
        magic, kind, dimension, metric, lsn, chain, number = _PREFIX.unpack(reader.take(_PREFIX.size))
        moment = Moment(kind == _DOCUMENTS, dimension, Metric(metric), lsn, chain, number)
    except ValueError:
        raise DataDamaged from None
    if magic != _MAGIC or kind not in (_POINTS, _DOCUMENTS) or not dimension:
        raise DataDamaged
    same_analyser = reader.text() == ANALYSER
    state = new_state(moment.text, dimension, moment.metric, indexed)
    lengths = np.empty(0, np.uint32)
    postings: list[memoryview] = []
    graph: memoryview | None = None
    while True:
        tag, size = reader.u8(), reader.u64()
        content = reader.take(size)
        if tag == _OPERATIONS:
            _restore(state, content, dimension, same_analyser)
        elif tag == _LENGTHS:
            lengths = np.frombuffer(content, "<u4").astype(np.uint32)
        elif tag == _POSTINGS:
            postings.append(content)
        elif tag == _GRAPH:
            graph = content
        elif tag == _END and reader.at_end:
            break
        else:
            raise DataDamaged
    if isinstance(state, DocumentState):
        state.next_sequence = number
        if same_analyser:
            state.lexical.load(lengths, _postings(postings))
    elif isinstance(state, PointState):
        state.next_version = max(state.next_version, number)
    if graph is not None:
        try:
            state.index.adopt_graph(load_graph(graph, state.index))
        except BadShape:
            raise DataDamaged from None
    return moment, state


def new_state(text: bool, dimension: int, metric: Metric, indexed: Indexed = None) -> State:
    """The empty state of a collection; the fields that filters may name."""
    kind = DocumentState if text else PointState
    return kind(dimension, metric, indexed)


def _restore(state: State, content: memoryview, dimension: int, same_analyser: bool) -> None:
    for operation in decode(content, dimension):
        if isinstance(state, DocumentState) and isinstance(operation, PutDocument) and same_analyser:
            state.restore(operation)
        else:
            state.apply(operation)


def _postings(sections: Iterable[memoryview]) -> Iterator[tuple[str, bytes]]:
    for section in sections:
        reader = Reader(section)
        while not reader.at_end:
            yield reader.text(), reader.raw()


def _section(tag: int, content: bytes) -> bytes:
    return _SECTION.pack(tag, len(content)) + content
