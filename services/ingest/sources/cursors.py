"""Cursors: what a listing remembers, as bytes that only the same kind of listing reads back.

The form is zlib over JSON {"settings": hash, "state": ...}. The hash binds a cursor to the settings it
was made with, since a listing of other folders cannot go on from it. Kept sealed by whoever keeps it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from services.ingest.sources.contract import CursorExpired, SourceSettings

CURSOR_BYTES_MAX = 8 * 1024 * 1024


class CursorState(BaseModel):
    """Base of what one source's listing remembers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


StateT = TypeVar("StateT", bound=CursorState)


def write_cursor(settings: SourceSettings, state: CursorState) -> bytes:
    """The cursor of a state."""
    body = json.dumps({"settings": _hash(settings), "state": state.model_dump(mode="json")})
    return zlib.compress(body.encode())


def read_cursor(settings: SourceSettings, kind: type[StateT], cursor: bytes) -> StateT:
    """The state of a cursor. CursorExpired when it is of other settings, or of an older form."""
    try:
        unpacker = zlib.decompressobj()
        body = json.loads(unpacker.decompress(cursor, CURSOR_BYTES_MAX))
        if body["settings"] == _hash(settings):
            return kind.model_validate(body["state"])
    except (zlib.error, ValueError, TypeError, KeyError, ValidationError):
        pass
    raise CursorExpired("the cursor is of other settings or of an older version; list everything again")


def fingerprint(*parts: str) -> str:
    """A short hash of texts, to see whether they changed."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _hash(settings: SourceSettings) -> str:
    return fingerprint(settings.model_dump_json())
