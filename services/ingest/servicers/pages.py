"""Page tokens of ingest's own listings: positions sealed under a key of the account.

Connections and ingestions belong to the account, not to a collection, so the key does too: its resource is
derived from the account, and its purpose is one of ingest's.
"""

from __future__ import annotations

import hashlib
import struct

from services.common import ids, paging
from services.common.context import current_account
from services.common.datakeys import DataKeys
from services.common.errors import invalid
from services.common.sealing import DataKey
from services.ingest.connections.records import PURPOSE

PAGE_SIZE_MAX = 200
_TOKEN_CHARS_MAX = 4096
_PLACE = struct.Struct(">Q")
START = (0, "")


class Pages:
    """Makes and reads page tokens within the account of the call in progress."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    def size(self, requested: int) -> int:
        """The size of a page."""
        return paging.page_size(requested, most=PAGE_SIZE_MAX)

    async def encode(self, listing: str, position: tuple[int, str]) -> str:
        """The token for what comes after a position: a time and an id, or any two parts."""
        raw = _PLACE.pack(position[0]) + position[1].encode()
        return paging.encode(await self._key(), current_account(), listing, "", raw)

    async def decode(self, listing: str, token: str) -> tuple[int, str]:
        """The position in a token; the start for none. Raises InvalidArgument."""
        if not token:
            return START
        if len(token) > _TOKEN_CHARS_MAX:
            raise invalid("page_token", f"is longer than {_TOKEN_CHARS_MAX} characters")
        raw = paging.decode(await self._key(), current_account(), listing, "", token)
        return _PLACE.unpack(raw[: _PLACE.size])[0], raw[_PLACE.size :].decode()

    async def _key(self) -> DataKey:
        digest = hashlib.sha256(b"sealcomb pages\0" + current_account().encode()).digest()
        return await self._keys.current(ids.from_bytes(digest[:16]), PURPOSE)
