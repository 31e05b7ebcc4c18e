"""What can be done to a collection, and its bytes in the log and in snapshots.

Bytes, all integers little-endian: a list of operations is a u32 count and the operations. Text and
bytes are a u32 length and the bytes (UTF-8); a list is a u32 count and its elements; vectors are
float32, their count and dimension known from what stands before. An operation begins with a u8:

    1 UpsertPoints     list of (id, metadata, text), then the vectors
    2 DeletePoints     list of ids
    3 PutDocument      document, list of (u32 index, u32 page, text), then the vectors
    4 DeleteDocument   id
    5 PutDocument      that replaces: id of the older version, then as 3

    document           id, name, content type, u64 size, u32 pages, metadata, list of principals,
                       i64 creation time in ms, object key, idempotency key, u64 sequence

The bytes were authenticated before they come here; what does not parse is damage all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.common.errors import DataLoss
from services.vectorstore.index import Vectors
from services.vectorstore.lexical import Analysed

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_VECTOR_DTYPE = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class UpsertPoints:
    """Points to write; ids are distinct. Metadata is a Struct's bytes."""

    ids: Sequence[str]
    vectors: Vectors
    metadata: Sequence[bytes]
    texts: Sequence[str]


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
    """A passage's place in its document, and its text."""

    index: int
    page: int
    text: str


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


Operation = UpsertPoints | DeletePoints | PutDocument | DeleteDocument


class DataDamaged(DataLoss):
    """Authenticated bytes do not mean what they should: written by a broken or newer version."""

    reason = "DATA_DAMAGED"

    def __init__(self) -> None:
        super().__init__("stored data is damaged; restore it from a backup")


def encode(operations: Sequence[Operation]) -> bytes:
    """The operations' bytes."""
    out = [_U32.pack(len(operations))]
    for operation in operations:
        match operation:
            case UpsertPoints():
                out.append(b"\1" + _U32.pack(len(operation.ids)))
                for id_, metadata, text in zip(
                    operation.ids, operation.metadata, operation.texts, strict=True
                ):
                    out += (_text(id_), _bytes(metadata), _text(text))
                out.append(_vectors(operation.vectors))
            case DeletePoints(ids):
                out.append(b"\2" + _texts(ids))
            case PutDocument(document, passages, vectors):
                kind = b"\5" + _text(operation.replaces) if operation.replaces else b"\3"
                out += (kind, _document(document), _U32.pack(len(passages)))
                for passage in passages:
                    out += (_U32.pack(passage.index), _U32.pack(passage.page), _text(passage.text))
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


class Reader:
    """Reads the parts of a buffer in order. Raises DataDamaged beyond its end."""

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(raw)
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self._at == len(self._view)

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        end = self._at + size
        if size < 0 or end > len(self._view):
            raise DataDamaged
        part = self._view[self._at : end]
        self._at = end
        return part

    def u8(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """The next unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """The next unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def i64(self) -> int:
        """The next signed 64-bit number."""
        return int(_I64.unpack(self.take(8))[0])

    def raw(self) -> bytes:
        """The next bytes with their length before them."""
        return bytes(self.take(self.u32()))

    def text(self) -> str:
        """The next text."""
        try:
            return str(self.take(self.u32()), "utf-8")
        except UnicodeDecodeError:
            raise DataDamaged from None

    def texts(self) -> list[str]:
        """The next list of texts."""
        return [self.text() for _ in range(self.u32())]

    def vectors(self, count: int, dimension: int) -> Vectors:
        """The next vectors."""
        part = self.take(4 * count * dimension)
        return np.frombuffer(part, _VECTOR_DTYPE).reshape(count, dimension).astype(np.float32, copy=False)


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
        case _:
            raise DataDamaged


def _read_put(reader: Reader, dimension: int, replaces: str) -> PutDocument:
    document = _read_document(reader)
    passages = [Passage(reader.u32(), reader.u32(), reader.text()) for _ in range(reader.u32())]
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


def _document(document: Document) -> bytes:
    return b"".join(
        (
            _text(document.id),
            _text(document.name),
            _text(document.content_type),
            _U64.pack(document.size_bytes),
            _U32.pack(document.pages),
            _bytes(document.metadata),
            _texts(document.principals),
            _I64.pack(document.create_time_ms),
            _text(document.object_key),
            _text(document.idempotency_key),
            _U64.pack(document.sequence),
        )
    )


def _bytes(raw: bytes) -> bytes:
    return _U32.pack(len(raw)) + raw


def _text(text: str) -> bytes:
    return _bytes(text.encode())


def _texts(texts: Iterable[str]) -> bytes:
    encoded = [_text(text) for text in texts]
    return _U32.pack(len(encoded)) + b"".join(encoded)


def _vectors(vectors: Vectors) -> bytes:
    return np.ascontiguousarray(vectors, _VECTOR_DTYPE).tobytes()
