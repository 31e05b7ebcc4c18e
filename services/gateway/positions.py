"""Page positions of the gateway's listings: a creation time and an id, sealed into page tokens.

The key is the gateway's own, made from the token pepper, so that lists work while an account's
key is disabled.
"""

from __future__ import annotations

from services.common import ids, paging
from services.common.sealing import DataKey
from services.gateway.tokens import Pepper

Position = tuple[int, str]
START: Position = (-1, "")


def page_key(pepper: Pepper) -> DataKey:
    """The key that seals the gateway's page tokens."""
    return DataKey(ids.from_bytes(pepper.tag("page key id")[:16]), pepper.tag("page key"))


def encode_position(key: DataKey, account: str, listing: str, position: Position | None) -> str:
    """The page token after a position; empty for none."""
    if position is None:
        return ""
    create_time_ms, row_id = position
    return paging.encode(key, account, listing, "", create_time_ms.to_bytes(8, "big") + row_id.encode())


def decode_position(key: DataKey, account: str, listing: str, token: str) -> Position:
    """The position in a page token; the start for an empty one. Raises InvalidArgument."""
    if not token:
        return START
    raw = paging.decode(key, account, listing, "", token)
    return int.from_bytes(raw[:8], "big"), raw[8:].decode()
