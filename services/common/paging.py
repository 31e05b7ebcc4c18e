"""Page tokens: the sealed position after which the next page begins.

A token is bound to its account, its listing and its resource, so one that was made up, changed
or taken from another listing is refused; it shows nothing of the names it passes over.
"""

from __future__ import annotations

import base64
import binascii

from services.common.errors import invalid
from services.common.sealing import DataKey, Identity, OpenFailed, open_sealed, seal

_TOKEN_CHARS_MAX = 4096


def encode(key: DataKey, account: str, listing: str, resource: str, position: bytes) -> str:
    """The token for the page after `position`."""
    sealed = seal(key, Identity(account, resource, "page:" + listing), position)
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def decode(key: DataKey, account: str, listing: str, resource: str, token: str) -> bytes:
    """The position in a token; InvalidArgument if it is not one of this listing's."""
    try:
        if len(token) > _TOKEN_CHARS_MAX:
            raise ValueError
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return open_sealed(key, Identity(account, resource, "page:" + listing), sealed)
    except (ValueError, binascii.Error, OpenFailed):
        raise invalid("page_token", "is not a token of this listing; start again without one") from None


def page_size(requested: int, *, default: int = 100, most: int = 1000) -> int:
    """The size to use for a requested page size; 0 means the default, and more than `most` means `most`."""
    return min(requested, most) if requested else default
