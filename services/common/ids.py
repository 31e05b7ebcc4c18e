"""Opaque resource ids: 128 random bits in lowercase Crockford base 32, 26 characters.

An id is a name, never a capability: every look-up also checks the account.
"""

from __future__ import annotations

import re
import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# 26 characters are 130 bits, so the first has only three: one id has one spelling.
_PATTERN = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def new_id() -> str:
    """A fresh id."""
    return from_bytes(secrets.token_bytes(16))


def from_bytes(raw: bytes) -> str:
    """The id with these 16 bytes."""
    if len(raw) != 16:
        raise ValueError("an id has 16 bytes")
    value = int.from_bytes(raw, "big")
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def to_bytes(text: str) -> bytes:
    """The 16 bytes of an id; ValueError if it is none."""
    if not is_id(text):
        raise ValueError("not an id")
    value = 0
    for char in text:
        value = value << 5 | _ALPHABET.index(char)
    return value.to_bytes(16, "big")


def is_id(text: str) -> bool:
    """Whether the text has the form of an id."""
    return _PATTERN.fullmatch(text) is not None
