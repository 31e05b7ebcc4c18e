"""What can be done to a collection, and its bytes in the log and in snapshots.

Bytes, all integers little-endian: a list of operations is a u32 count and the operations. Text and
bytes are a u32 length and the bytes (UTF-8); a list is a u32 count and its elements; vectors are
float32, their count and dimension known from what stands before. An operation begins with a u8:

    1 UpsertPoints     list of (id, metadata, text), then the vectors
    2 DeletePoints     list of ids
    3 PutDocument      document, list of (u32 index, u32 page, text), then the vectors
    4 DeleteDocument   id
    5 PutDocument      that replaces: id of the older version, then as 3
    6 UpsertPoints     in snapshots: list of (id, u64 version, metadata, text), then the vectors
    7 UpdatePoints     list of (id, u8 what is given: 1 metadata, 2 text, and those)
    8 PutDocument      with headings: id of the older version or nothing, document,
                       list of (u32 index, u32 page, text, heading), then the vectors

    document           id, name, content type, u64 size, u32 pages, metadata, list of principals,
                       i64 creation time in ms, object key, idempotency key, u64 sequence

The bytes were authenticated before they come here; what does not parse is damage all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.vectorstore.index import Vectors
from services.vectorstore.lexical import Analysed
from services.vectorstore.reader import VECTOR_DTYPE, DataDamaged, Reader

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_METADATA_GIVEN, _TEXT_GIVEN = 1, 2


@dataclass(frozen=True, slots=True)
class UpsertPoints:
    """Points to write; ids are distinct. Metadata is a Struct's bytes.

    Without versions they get the collection's next one; a snapshot says which they have.
    """

    ids: Sequence[str]
    vectors: Vectors
    metadata: Sequence[bytes]
    texts: Sequence[str]
    versions: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class UpdatePoints:
    """New metadata or texts of points, None where they stay; ids are distinct.

    Points that are not there stay away.
    """

    ids: Sequence[str]
    metadata: Sequence[bytes | None]
    texts: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class DeletePoints:
    """Points to delete; ids that are not there do nothing."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Document:
    """A document's record. `sequence` is its place in the order of creation."""

    id: str
    name: str
    content_type: str
    size_bytes: int
    pages: int
    metadata: bytes
    principals: tuple[str, ...]
    create_time_ms: int
    object_key: str
    idempotency_key: str
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage's place in its document, its text, and the nearest heading above it."""

    index: int
    page: int
    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class PutDocument:
    """A document and all its passages. `analysed` is derived from the texts and is not stored.

    The document named by `replaces`, if it is there, goes in the same moment.
    """

    document: Document
    passages: Sequence[Passage]
    vectors: Vectors
    analysed: Analysed | None = field(default=None, compare=False)
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class DeleteDocument:
    """A document to delete, with its passages."""

    id: str


Operation = UpsertPoints | UpdatePoints | DeletePoints | PutDocument | DeleteDocument


def encode(operations: Sequence[Operation]) -> bytes:
    """The operations' bytes."""
    out = [_U32.pack(len(operations))]
    for operation in operations:
        match operation:
            case UpsertPoints():
                out += _upsert(operation)
            case UpdatePoints():
                out += _update(operation)
            case DeletePoints(ids):
                out.append(b"\2" + _texts(ids))
            case PutDocument(document, passages, vectors):
                headed = any(passage.heading for passage in passages)
                out += (_put_kind(operation.replaces, headed), _document(document))
                out.append(_U32.pack(len(passages)))
                for passage in passages:
                    out += (_U32.pack(passage.index), _U32.pack(passage.page), _text(passage.text))
                    if headed:
                        out.append(_text(passage.heading))
                out.append(_vectors(vectors))
            case DeleteDocument(id_):
                out.append(b"\4" + _text(id_))
    return b"".join(out)


def decode(raw: bytes | memoryview, dimension: int) -> list[Operation]:
    """The operations in bytes that `encode` made. Raises DataDamaged."""
    reader = Reader(raw)
    operations = [_operation(reader, dimension) for _ in range(reader.u32())]
    if not reader.at_end:
        raise DataDamaged
    return operations


def _operation(reader: Reader, dimension: int) -> Operation:
    match reader.u8():
        case 1:
            rows = [(reader.text(), reader.raw(), reader.text()) for _ in range(reader.u32())]
            vectors = reader.vectors(len(rows), dimension)
            return UpsertPoints(
                [row[0] for row in rows], vectors, [row[1] for row in rows], [row[2] for row in rows]
            )
        case 2:
            return DeletePoints(reader.texts())
        case 3:
            return _read_put(reader, dimension, "")
        case 4:
            return DeleteDocument(reader.text())
        case 5:
            return _read_put(reader, dimension, reader.text())
        case 6:
            return _read_versioned(reader, dimension)
        case 7:
            return _read_update(reader)
        case 8:
            return _read_put(reader, dimension, reader.text(), headed=True)
        case _:
            raise DataDamaged


def _read_versioned(reader: Reader, dimension: int) -> UpsertPoints:
    ids, versions, metadata, texts = reader.versioned(reader.u32())
    vectors = reader.vectors(len(ids), dimension)
    return UpsertPoints(ids, vectors, metadata, texts, versions)


def _read_update(reader: Reader) -> UpdatePoints:
    ids: list[str] = []
    metadata: list[bytes | None] = []
    texts: list[str | None] = []
    for _ in range(reader.u32()):
        ids.append(reader.text())
        given = reader.u8()
        if given & ~(_METADATA_GIVEN | _TEXT_GIVEN):
            raise DataDamaged
        metadata.append(reader.raw() if given & _METADATA_GIVEN else None)
        texts.append(reader.text() if given & _TEXT_GIVEN else None)
    return UpdatePoints(ids, metadata, texts)


def _put_kind(replaces: str, headed: bool) -> bytes:
    if headed:
        return b"\10" + _text(replaces)
    return b"\5" + _text(replaces) if replaces else b"\3"


def _read_put(reader: Reader, dimension: int, replaces: str, *, headed: bool = False) -> PutDocument:
    document = _read_document(reader)
    passages = [
        Passage(reader.u32(), reader.u32(), reader.text(), reader.text() if headed else "")
        for _ in range(reader.u32())
    ]
    return PutDocument(document, passages, reader.vectors(len(passages), dimension), replaces=replaces)


def _read_document(reader: Reader) -> Document:
    return Document(
        id=reader.text(),
        name=reader.text(),
        content_type=reader.text(),
        size_bytes=reader.u64(),
        pages=reader.u32(),
        metadata=reader.raw(),
        principals=tuple(reader.texts()),
        create_time_ms=reader.i64(),
        object_key=reader.text(),
        idempotency_key=reader.text(),
        sequence=reader.u64(),
    )


def _upsert(operation: UpsertPoints) -> Iterator[bytes]:
    kind = b"\1" if operation.versions is None else b"\6"
    yield kind + _U32.pack(len(operation.ids))
    versions = operation.versions or ()
    for place, (id_, metadata, text) in enumerate(
        zip(operation.ids, operation.metadata, operation.texts, strict=True)
    ):
        yield _text(id_)
        if versions:
            yield _U64.pack(versions[place])
        yield length_prefixed(metadata)
        yield _text(text)
    yield _vectors(operation.vectors)


def _update(operation: UpdatePoints) -> Iterator[bytes]:
    yield b"\7" + _U32.pack(len(operation.ids))
    for id_, metadata, text in zip(operation.ids, operation.metadata, operation.texts, strict=True):
        given = (metadata is not None) * _METADATA_GIVEN | (text is not None) * _TEXT_GIVEN
        yield _text(id_) + bytes([given])
        if metadata is not None:
            yield length_prefixed(metadata)
        if text is not None:
            yield _text(text)


def _document(document: Document) -> bytes:
    return b"".join(
        (
            _text(document.id),
            _text(document.name),
            _text(document.content_type),
            _U64.pack(document.size_bytes),
            _U32.pack(document.pages),
            length_prefixed(document.metadata),
            _texts(document.principals),
            _I64.pack(document.create_time_ms),
            _text(document.object_key),
            _text(document.idempotency_key),
            _U64.pack(document.sequence),
        )
    )


def length_prefixed(raw: bytes) -> bytes:
    """Bytes as `Reader.raw` reads them."""
    return _U32.pack(len(raw)) + raw


def _text(text: str) -> bytes:
    return length_prefixed(text.encode())


def _texts(texts: Iterable[str]) -> bytes:
    encoded = [_text(text) for text in texts]
    return _U32.pack(len(encoded)) + b"".join(encoded)


def _vectors(vectors: Vectors) -> bytes:
    return np.ascontiguousarray(vectors, VECTOR_DTYPE).tobytes()
