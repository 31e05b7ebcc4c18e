"""Reads stored bytes in order: numbers, texts, vectors (their forms stand in operations.py).

The bytes were authenticated before they come here, so what does not parse was written by a broken or newer
version; it is refused all the same, and never read beyond its end.
"""

from __future__ import annotations

import struct

import numpy as np

from services.common.errors import DataLoss
from services.vectorstore.index import Vectors

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
VECTOR_DTYPE = np.dtype("<f4")


class DataDamaged(DataLoss):
    """Authenticated bytes do not mean what they should: written by a broken or newer version."""

    reason = "DATA_DAMAGED"

    def __init__(self) -> None:
        super().__init__("stored data is damaged; restore it from a backup")


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

    def rest(self) -> memoryview:
        """All that is left."""
        return self.take(len(self._view) - self._at)

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

    def versioned(self, count: int) -> tuple[list[str], list[int], list[bytes], list[str]]:
        """The next `count` times text, u64, bytes and text, as four lists.

        The same as reading each by itself, in half the time: an opening reads every point of a collection.
        """
        texts: list[str] = []
        numbers: list[int] = []
        raws: list[bytes] = []
        more: list[str] = []
        view, at, end = self._view, self._at, len(self._view)
        try:
            for _ in range(count):
                begin = at + 4
                at = begin + _U32.unpack_from(view, at)[0]
                texts.append(str(view[begin:at], "utf-8"))
                numbers.append(_U64.unpack_from(view, at)[0])
                begin = at + 12
                at = begin + _U32.unpack_from(view, at + 8)[0]
                raws.append(bytes(view[begin:at]))
                begin = at + 4
                at = begin + _U32.unpack_from(view, at)[0]
                more.append(str(view[begin:at], "utf-8"))
        except (struct.error, UnicodeDecodeError):
            raise DataDamaged from None
        # A slice ends with the buffer whatever it was asked for.
        if at > end:
            raise DataDamaged
        self._at = at
        return texts, numbers, raws, more

    def vectors(self, count: int, dimension: int) -> Vectors:
        """The next vectors."""
        part = self.take(4 * count * dimension)
        return np.frombuffer(part, VECTOR_DTYPE).reshape(count, dimension).astype(np.float32, copy=False)
