"""The shape of a graph: who is linked to whom, without the vectors, which the collection has anyway.

hnswlib can only save and load a whole index, vectors included. So its bytes are taken apart here
and put together again, with deleted vectors left out: a shape that is stored tells nothing of them.

hnswlib 0.8.0's bytes, little-endian, for n elements, M links a level and 2M at the lowest:

    u64  0, n_max, n, bytes an element, offset of the label, offset of the vector (each u64)
    i32  highest level
    u32  entry point
    u64  M, 2M, M (each u64)
    f64  1 / ln M
    u64  ef_construction
    n times: u32 number of links and, in bit 16, whether deleted; 2M u32 links; vector; u64 label
    n times: u32 size of the upper links; for each upper level u32 number of links, M u32 links

A shape's bytes: u32 n, u64 rows that it covers, i32 highest level, u32 entry point, u64 size of the upper
links; then u32 row of each element (2^32 - 1 for a deleted one), the n times 2M + 1 numbers of the
lowest level, n sizes, and the upper links.

The bytes were authenticated before they come here; all the same no link that leads outside is let through.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.vectorstore.nearest import Rows, Vectors, unit

M = 16
EF_CONSTRUCTION = 100
_HEADER = struct.Struct("<6QiI3QdQ")
_SHAPE = struct.Struct("<IQiIQ")
_WIDTH = 2 * M + 1
_UPPER_WIDTH = M + 1
_DELETED = np.uint32(1 << 16)
_COUNT = np.uint32(0xFFFF)
_NO_ROW = 0xFFFFFFFF
_LEVELS_MAX = 64
_BLOCK = 1024
_Numbers = npt.NDArray[np.uint32]


class BadShape(ValueError):
    """Bytes that are no graph."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The links of a graph's elements; nothing in it changes."""

    level: int
    entry: int
    # A row an element: the number of links, and the links.
    lowest: _Numbers
    upper_sizes: _Numbers
    upper: bytes

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""
        return self.lowest.nbytes + self.upper_sizes.nbytes + len(self.upper)


def shape_of(raw: memoryview, rows: Rows) -> Shape:
    """The shape in an index's bytes; its elements must be these rows in this order. Raises BadShape."""
    try:
        head = _HEADER.unpack(raw[: _HEADER.size])
    except struct.error:
        raise BadShape from None
    count, size, label_at, vector_at = head[2:6]
    if count != len(rows) or (vector_at, head[9]) != (4 * _WIDTH, 2 * M):
        raise BadShape
    end = _HEADER.size + count * size
    elements = np.frombuffer(raw[_HEADER.size : end], np.uint8).reshape(count, size)
    labels = elements[:, label_at : label_at + 8].copy().view("<u8")[:, 0]
    if not np.array_equal(labels, rows.astype(np.uint64)):
        raise BadShape
    lowest = elements[:, :vector_at].copy().view("<u4")
    lowest[:, 0] &= _COUNT
    sizes, parts, at = np.zeros(count, np.uint32), [], end
    for element in range(count):
        length = int.from_bytes(raw[at : at + 4], "little")
        at += 4 + length
        if length:
            sizes[element] = length
            parts.append(bytes(raw[at - length : at]))
    shape = Shape(head[6], head[7], lowest, sizes, b"".join(parts))
    _check(shape)
    return shape


def index_bytes(shape: Shape, rows: Rows, vectors: Vectors, *, as_unit: bool) -> list[bytes | memoryview]:
    """An index's bytes in parts, of these rows by element, -1 for deleted ones.

    `vectors` are those of all rows, for an index `as_unit` at length 1; a deleted one's is taken from its
    neighbours, for the walk's sake. The labels of deleted ones begin beyond all rows.
    """
    count, dimension, spare_label = len(rows), vectors.shape[1], len(vectors)
    size = 4 * _WIDTH + 4 * dimension + 8
    dead = rows < 0
    # Everything is a multiple of four bytes, and numbers are copied faster than bytes.
    elements = np.empty((count, size // 4), "<u4")
    elements[:, :_WIDTH] = shape.lowest
    elements[dead, 0] |= _DELETED
    # In blocks that stay in the processor's cache, so that nothing of the size of all is copied twice.
    for start in range(0, count, _BLOCK):
        taken: Vectors = vectors[rows[start : start + _BLOCK]]
        elements[start : start + _BLOCK, _WIDTH:-2] = (unit(taken) if as_unit else taken).view("<u4")
    for element in np.flatnonzero(dead).tolist():
        links = shape.lowest[element, 1 : 1 + int(shape.lowest[element, 0])]
        near = elements[links[~dead[links]], _WIDTH:-2].view("<f4")
        filled = near.mean(0) if len(near) else np.zeros(dimension)
        elements[element, _WIDTH:-2] = filled.astype("<f4").view("<u4")
    labels = np.where(dead, np.arange(spare_label, spare_label + count), rows).astype("<u8")
    elements[:, -2:] = labels[:, np.newaxis].view("<u4")
    header = _HEADER.pack(
        0, count, count, size, size - 8, 4 * _WIDTH, shape.level, shape.entry,
        M, 2 * M, M, 1 / math.log(M), EF_CONSTRUCTION,
    )  # fmt: skip
    upper, at = [], 0
    for length in shape.upper_sizes.tolist():
        upper.append(struct.pack("<I", length) + shape.upper[at : at + length])
        at += length
    return [header, elements.data.cast("B"), b"".join(upper)]


def pack(shape: Shape, rows: Rows, until: int) -> bytes:
    """A shape's bytes, with the rows of its elements, -1 for deleted ones."""
    head = _SHAPE.pack(len(rows), until, shape.level, shape.entry, len(shape.upper))
    numbers = np.where(rows < 0, _NO_ROW, rows).astype("<u4")
    return b"".join(
        (head, numbers.tobytes(), shape.lowest.tobytes(), shape.upper_sizes.tobytes(), shape.upper)
    )


def unpack(raw: memoryview) -> tuple[Shape, Rows, int]:
    """The shape, rows and number of covered rows in what `pack` made. Raises BadShape."""
    try:
        count, until, level, entry, upper = _SHAPE.unpack(raw[: _SHAPE.size])
    except struct.error:
        raise BadShape from None
    if len(raw) != _SHAPE.size + 4 * count * (1 + _WIDTH + 1) + upper:
        raise BadShape
    numbers = np.frombuffer(raw[_SHAPE.size : len(raw) - upper], "<u4").astype(np.uint32, copy=False)
    rows = numbers[:count].astype(np.int64)
    rows[rows == _NO_ROW] = -1
    there = rows[rows >= 0]
    if len(there) and (there.max() >= until or len(np.unique(there)) != len(there)):
        raise BadShape
    lowest = numbers[count : count * (1 + _WIDTH)].reshape(count, _WIDTH)
    shape = Shape(level, entry, lowest, numbers[count * (1 + _WIDTH) :], bytes(raw[len(raw) - upper :]))
    _check(shape)
    return shape, rows, until


def _check(shape: Shape) -> None:
    """Raises BadShape for a link that leads outside."""
    count = len(shape.lowest)
    if not count or shape.entry >= count or not 0 <= shape.level < _LEVELS_MAX:
        raise BadShape
    sizes = shape.upper_sizes
    if (sizes % (4 * _UPPER_WIDTH)).any() or int(sizes.sum(dtype=np.uint64)) != len(shape.upper):
        raise BadShape
    levels = sizes // (4 * _UPPER_WIDTH)
    if int(levels.max()) != shape.level or levels[shape.entry] != shape.level:
        raise BadShape
    upper = np.frombuffer(shape.upper, "<u4").reshape(-1, _UPPER_WIDTH)
    for links in (shape.lowest, upper):
        numbers, width = links[:, 0], links.shape[1] - 1
        if (numbers > width).any():
            raise BadShape
        used = np.arange(width) < numbers[:, np.newaxis]
        if (links[:, 1:][used] >= count).any():
            raise BadShape
    # An upper link leads to an element that has that level too.
    above = np.concatenate(
        [np.arange(1, number + 1) for number in levels[levels > 0].tolist()] or [levels[:0]]
    )
    used = np.arange(_UPPER_WIDTH - 1) < upper[:, :1]
    if (levels[upper[:, 1:][used]] < np.repeat(above, upper[:, 0])).any():
        raise BadShape
