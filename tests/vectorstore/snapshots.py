"""States to make snapshots of, objects in memory, and a writer of snapshots of before there were parts."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.common import ids
from services.common.errors import NotFound
from services.common.sealing import DataKey
from services.vectorstore import whole
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Metric
from services.vectorstore.layout import Layout
from services.vectorstore.lexical import ANALYSER
from services.vectorstore.log import Scope
from services.vectorstore.manifest import Manifest, Moment, decode, prefix
from services.vectorstore.operations import (
    DeletePoints,
    Document,
    Passage,
    PutDocument,
    UpsertPoints,
    encode,
    length_prefixed,
)
from services.vectorstore.parts import open_object, seal_object
from services.vectorstore.points import PointState
from services.vectorstore.segments import LENGTHS, OPERATIONS, POSTINGS, _section
from services.vectorstore.snapshot import Wish, Writer, Written, read_parts
from services.vectorstore.state import Capture, State
from tests.vectorstore.fakes import metadata_of, vector_of

KEY = DataKey(ids.from_bytes(bytes(16)), bytes(range(32)))
SCOPE = Scope("account", "collection")
_GRAPH, _END = 4, 0


class Objects(dict[str, bytes]):
    """Objects in memory."""

    def put(self, key: str, parts: Iterable[bytes]) -> None:
        """Stores an object."""
        self[key] = b"".join(parts)

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in pieces."""
        if key not in self:
            raise NotFound("there is no such object", reason="OBJECT_NOT_FOUND")
        yield from pieces(self[key])


class Notes:
    """Takes notes of objects."""

    def plan_snapshot(self, *_what: object) -> bool:
        """Forgets them."""
        return True


@dataclass
class Stock:
    """Snapshots of one collection, one after the other."""

    objects: Objects = field(default_factory=Objects)
    layout: Layout = field(default_factory=Layout)
    digest: bytes = b""
    lsn: int = 8
    key: DataKey = KEY

    def write(self, state: State, wish: Wish | None = None) -> list[str]:
        """Writes a snapshot; the names of the objects that it wrote."""
        self.lsn += 1
        before = set(self.objects)
        capture = state.capture()
        store: Any = Notes()
        objects: Any = self.objects
        writer = Writer(store, objects, self.key, SCOPE, 1, threading.Event())
        try:
            written = writer.write(moment_of(state, self.lsn), capture, self.layout, wish or Wish())
        finally:
            capture.release()
        self.take(written)
        return sorted(key.rpartition("/")[2] for key in set(self.objects) - before)

    def take(self, written: Written) -> None:
        """Goes on from a snapshot."""
        self.layout, self.digest = written.layout, written.digest

    @property
    def manifest(self) -> Manifest:
        """The newest manifest."""
        identity = SCOPE.identity("snapshot", self.lsn)
        sealed = self.objects[f"account/collection/snap-{self.lsn:020d}"]
        return decode(open_object(self.key, identity, self.digest, [sealed]))

    def read(self, manifest: Manifest | None = None) -> tuple[State, Layout]:
        """What is stored."""
        objects: Any = self.objects
        keys = {KEY.id: KEY, self.key.id: self.key}
        return read_parts(objects, keys, SCOPE, manifest or self.manifest, None)


def points(count: int = 300) -> PointState:
    """Points with gaps."""
    state = PointState(8, Metric.COSINE)
    names = [f"p{number}" for number in range(count)]
    add(state, names)
    state.apply(DeletePoints(names[::5]))
    return state


def add(state: State, names: list[str]) -> None:
    """Writes points whose contents follow from their names."""
    vectors = np.stack([vector_of(name, 8) for name in names])
    raws = [metadata_of({"name": name}) for name in names]
    state.apply(UpsertPoints(names, vectors, raws, [f"text {name}." for name in names]))


def documents(count: int = 30) -> DocumentState:
    """Documents of two passages each."""
    state = DocumentState(8, Metric.COSINE)
    for number in range(count):
        put(state, number)
    return state


def put(state: State, number: int) -> None:
    """Puts a document."""
    texts = [f"passage {number} about wax", "honey"]
    record = Document(
        f"d{number}", "n", "t", 1, 0, metadata_of({"n": number}), (), 0, "o", f"k{number}", number + 1
    )
    passages = [Passage(place, 0, text) for place, text in enumerate(texts)]
    state.apply(PutDocument(record, passages, np.ones((2, 8), np.float32)))


def moment_of(state: State, lsn: int = 9) -> Moment:
    """A moment for a state."""
    text = isinstance(state, DocumentState)
    return Moment(text, state.index.dimension, state.index.metric, lsn, b"c" * 32, state.next_number)


def dumped(state: State) -> bytes:
    """The plaintext of a whole snapshot."""
    capture = state.capture()
    try:
        return b"".join(dump(moment_of(state), capture))
    finally:
        capture.release()


def dump(moment: Moment, capture: Capture) -> Iterator[bytes]:
    """The same of a capture."""
    items = capture.live_items.nonzero()[0]
    yield prefix(whole.MAGIC, moment) + length_prefixed(ANALYSER.encode())
    for operation in capture.operations(items):
        yield _section(OPERATIONS, encode([operation]))
    if moment.text:
        yield _section(LENGTHS, capture.lengths(items))
        postings = (
            length_prefixed(term.encode()) + length_prefixed(raw) for term, raw in capture.postings(items)
        )
        yield _section(POSTINGS, b"".join(postings))
    packed = b"" if capture.graph is None else capture.pack(capture.graph)
    if packed:
        yield _section(_GRAPH, packed)
    yield _section(_END, b"")


def sealed(plaintext: bytes, lsn: int = 9) -> tuple[bytes, bytes]:
    """An object and its digest."""
    raw = b"".join(seal_object(KEY, SCOPE.identity("snapshot", lsn), [plaintext]))
    return raw, hashlib.sha256(raw).digest()


def open_whole(scope: Scope, digest: bytes, chunks: Iterable[bytes]) -> bytearray:
    """The plaintext of such an object."""
    return open_object(KEY, scope.identity("snapshot", 9), digest, chunks)


def pieces(raw: bytes, size: int = 5000) -> Iterator[bytes]:
    """An object as a store streams it."""
    return (raw[start : start + size] for start in range(0, len(raw), size))
