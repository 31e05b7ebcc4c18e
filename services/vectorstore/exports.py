"""The bytes of a sealed export: frames in a stream that only their account opens.

The plaintext is frames, each a u32 length, little-endian, and its bytes; sealed as Identity(account,
"catalog", "export", object=the export's id) under the account's catalog key, which outlives any collection.
So an export that was cut, reordered, spliced with another, or is another account's does not open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from services.common.errors import InvalidArgument, invalid
from services.common.sealing import DataKey, Identity, Opener, OpenFailed, Sealer
from services.vectorstore.catalog import CATALOG

_LENGTH = struct.Struct("<I")
FRAME_BYTES_MAX = 5 * 1024 * 1024


def bad_export() -> InvalidArgument:
    """The one answer for an export that does not open."""
    return invalid(
        "frame", "is not of a whole, unchanged export of this account; export again", reason="EXPORT_BROKEN"
    )


class SealedExport:
    """Seals frames one after the other."""

    def __init__(self, key: DataKey, account: str, export: str) -> None:
        self._sealer = Sealer(key, _identity(account, export))

    def seal(self, frame: bytes) -> bytes:
        """The next sealed bytes."""
        return self._sealer.update(_LENGTH.pack(len(frame)) + frame)

    def end(self) -> bytes:
        """The last sealed bytes."""
        return self._sealer.finalize()


class OpenedExport:
    """Opens them again. Each frame is authenticated; that none is missing is known after `end`."""

    def __init__(self, key: DataKey, account: str, export: str) -> None:
        self._opener = Opener(key, _identity(account, export))
        self._pending = bytearray()

    def open(self, sealed: bytes) -> Iterator[bytes]:
        """The frames that are complete with these bytes. Raises InvalidArgument."""
        try:
            self._pending += self._opener.update(sealed)
        except OpenFailed:
            raise bad_export() from None
        yield from self._frames()

    def end(self) -> Iterator[bytes]:
        """The last frames. Raises InvalidArgument unless all has come."""
        try:
            self._pending += self._opener.finalize()
        except OpenFailed:
            raise bad_export() from None
        yield from self._frames()
        if self._pending:
            raise bad_export()

    def _frames(self) -> Iterator[bytes]:
        while len(self._pending) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._pending)
            if size > FRAME_BYTES_MAX:
                raise bad_export()
            end = _LENGTH.size + size
            if len(self._pending) < end:
                return
            frame = bytes(self._pending[_LENGTH.size : end])
            del self._pending[:end]
            yield frame


def _identity(account: str, export: str) -> Identity:
    return Identity(account, CATALOG, "export", export)
