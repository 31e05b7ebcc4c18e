"""Bearer tokens: their form, their check, and the keyed hash that alone is stored.

    sealcomb_<kind>_<id>_<secret><checksum>

    kind      "acc" (an account's) or "op" (an operator's)
    id        26 characters, the token's public id
    secret    30 characters of base 62 from the system's generator, 178 bits
    checksum  6 characters of base 62, the CRC-32 of everything before it

The prefix and checksum let scanners find leaked tokens and let typos cost no look-up. What is
stored is HMAC-SHA-256(pepper, whole token): a stolen table holds nothing that authenticates.
This module must never put a token into an exception, a repr or a log.
"""

from __future__ import annotations

import enum
import hmac
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.common import ids
from services.common.secretfiles import read_secret_file

PATTERN = r"sealcomb_(?:acc|op)_[0-9a-hjkmnp-tv-z]{26}_[0-9A-Za-z]{36}"
PEPPER_BYTES = 32
DIGEST_BYTES = 32
_BASE62 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS = 30
_CHECKSUM_CHARS = 6
_FORM = re.compile(PATTERN.encode())

RandomBytes = Callable[[int], bytes]


class Kind(enum.Enum):
    """Whose token it is."""

    ACCOUNT = "acc"
    OPERATOR = "op"


@dataclass(frozen=True, slots=True)
class Token:
    """A whole token, whose text shows only where it is asked for by name."""

    kind: Kind
    id: str
    text: str = field(repr=False)

    def __str__(self) -> str:
        return f"sealcomb_{self.kind.value}_{self.id}_..."

    def __reduce__(self) -> str:
        raise TypeError("a token is not serialisable")


def make_token(kind: Kind, random_bytes: RandomBytes) -> Token:
    """A new token."""
    token_id = ids.from_bytes(random_bytes(16))
    head = b"sealcomb_%s_%s_%s" % (kind.value.encode(), token_id.encode(), _secret(random_bytes))
    return Token(kind, token_id, (head + _checksum(head)).decode())


def has_token_form(text: bytes) -> bool:
    """Whether a text is a token by form and checksum; says nothing of whether anybody issued it."""
    return _FORM.fullmatch(text) is not None and _checksum(text[:-_CHECKSUM_CHARS]) == text[-_CHECKSUM_CHARS:]


def id_in(text: bytes) -> str:
    """The id in a text that `has_token_form`."""
    return text[-63:-37].decode()


class Pepper:
    """The installation's secret that keys every hash made here."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != PEPPER_BYTES:
            raise ValueError(f"the token pepper must have {PEPPER_BYTES} bytes")
        self._secret = secret

    @classmethod
    def from_file(cls, path: Path) -> Pepper:
        """The pepper in a file that nobody else may read."""
        return cls(read_secret_file(path, PEPPER_BYTES + 1))

    def digest(self, token: bytes) -> bytes:
        """What is stored of a token."""
        return hmac.digest(self._secret, token, "sha256")

    def tag(self, purpose: str, *parts: str) -> bytes:
        """A keyed tag of caller's text that must be found again but not read, such as an idempotency key."""
        # Lengths keep ("a", "bc") and ("ab", "c") apart; the leading NUL keeps tags and tokens apart.
        encoded = [part.encode() for part in (purpose, *parts)]
        message = b"\0" + b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
        return hmac.digest(self._secret, message, "sha256")


def same_digest(left: bytes, right: bytes) -> bool:
    """Whether two digests are equal, in time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)


def _secret(random_bytes: RandomBytes) -> bytes:
    chars = bytearray()
    while len(chars) < _SECRET_CHARS:
        # 248 is the largest multiple of 62 in a byte; above it the choice would be uneven.
        chars += bytes(_BASE62[byte % 62] for byte in random_bytes(_SECRET_CHARS) if byte < 248)
    return bytes(chars[:_SECRET_CHARS])


def _checksum(head: bytes) -> bytes:
    value = zlib.crc32(head)
    chars = bytearray()
    for _ in range(_CHECKSUM_CHARS):
        value, digit = divmod(value, 62)
        chars.append(_BASE62[digit])
    chars.reverse()
    return bytes(chars)
