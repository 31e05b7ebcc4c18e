"""The manifest of a snapshot: which parts it is made of, and which of their items are gone.

The plaintext, little-endian, with texts and bytes as in operations.py:

    8    magic "SCPART01"
    u8   kind: 1 points, 2 documents
    u32  dimension
    u8   metric
    u64  lsn
    32   chain of the log at that lsn
    u64  next document sequence, or version of points
    u64  next ordinal (layout.py)
    u32  number of segments; for each
         text name, text data key id, u64 size of the object, 32 SHA-256 of it
         u32  items in it
         bytes a bit for each item, set where it is gone, the first in the lowest bit; empty: none is
    u8   whether there is a graph; if so text name, text data key id, u64 size, 32 SHA-256

Sealed as Identity(account, collection, "snapshot", version=lsn), as the snapshots were that held everything
(whole.py): a version that knows only those refuses the magic.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.vectorstore.index import Mask, Metric
from services.vectorstore.operations import length_prefixed
from services.vectorstore.parts import GRAPH, SEGMENT, Part
from services.vectorstore.reader import DataDamaged, Reader

MAGIC = b"SCPART01"
PREFIX = struct.Struct("<8sBIBQ32sQ")
POINTS, DOCUMENTS = 1, 2
_DIGEST_BYTES = 32
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Moment:
    """What a snapshot is of."""

    text: bool
    dimension: int
    metric: Metric
    lsn: int
    chain: bytes
    next_number: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A segment: how many items it has, and which of them are gone; None where none is."""

    part: Part
    items: int
    gone: Mask | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parts of a snapshot."""

    moment: Moment
    next_ordinal: int
    segments: Sequence[Listed]
    graph: Part | None


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes."""
    out = [
        prefix(MAGIC, manifest.moment),
        _U64.pack(manifest.next_ordinal),
        _U32.pack(len(manifest.segments)),
    ]
    for listed in manifest.segments:
        gone = b"" if listed.gone is None else np.packbits(listed.gone, bitorder="little").tobytes()
        out += (_part(listed.part), _U32.pack(listed.items), length_prefixed(gone))
    out.append(b"\0" if manifest.graph is None else b"\1" + _part(manifest.graph))
    return b"".join(out)


def decode(raw: bytes | bytearray) -> Manifest:
    """The manifest in bytes that `encode` made. Raises DataDamaged."""
    reader = Reader(raw)
    moment = read_prefix(MAGIC, reader)
    next_ordinal = reader.u64()
    segments = [_read_listed(reader) for _ in range(reader.u32())]
    graph = _read_part(reader, GRAPH) if reader.u8() else None
    names = {listed.part.name for listed in segments}
    if not reader.at_end or len(names) < len(segments):
        raise DataDamaged
    return Manifest(moment, next_ordinal, segments, graph)


def prefix(magic: bytes, moment: Moment) -> bytes:
    """What manifests and whole snapshots begin with."""
    kind = DOCUMENTS if moment.text else POINTS
    return PREFIX.pack(
        magic, kind, moment.dimension, moment.metric.value, moment.lsn, moment.chain, moment.next_number
    )


def read_prefix(magic: bytes, reader: Reader) -> Moment:
    """The moment that `prefix` packed under a magic. Raises DataDamaged."""
    found, kind, dimension, metric, lsn, chain, number = PREFIX.unpack(reader.take(PREFIX.size))
    if found != magic or kind not in (POINTS, DOCUMENTS) or not dimension:
        raise DataDamaged
    try:
        return Moment(kind == DOCUMENTS, dimension, Metric(metric), lsn, chain, number)
    except ValueError:
        raise DataDamaged from None


def _read_listed(reader: Reader) -> Listed:
    part, items, raw = _read_part(reader, SEGMENT), reader.u32(), reader.raw()
    if not raw:
        return Listed(part, items)
    if len(raw) != (items + 7) // 8:
        raise DataDamaged
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=items, bitorder="little")
    return Listed(part, items, bits.astype(np.bool_))


def _read_part(reader: Reader, kind: str) -> Part:
    part = Part(reader.text(), reader.text(), reader.u64(), bytes(reader.take(_DIGEST_BYTES)))
    if not part.name.startswith(kind + "-"):
        raise DataDamaged
    return part


def _part(part: Part) -> bytes:
    return b"".join(
        (
            length_prefixed(part.name.encode()),
            length_prefixed(part.key_id.encode()),
            _U64.pack(part.size_bytes),
            part.digest,
        )
    )
