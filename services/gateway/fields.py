"""Checks of request fields that accounts and tokens share; each names the field in its InvalidArgument."""

from __future__ import annotations

import math
import unicodedata

from services.common.errors import invalid

NAME_CHARS_MAX = 256
_KEY_CHARS_MAX = 128
_LIMIT_MAX = 1_000_000
_QUOTA_MAX = 1 << 53


def check_name(field: str, text: str, *, empty: bool = False) -> None:
    """A name for people: 1 to 256 characters, none of them control characters."""
    if not text and not empty:
        raise invalid(field, "must not be empty")
    if len(text) > NAME_CHARS_MAX:
        raise invalid(field, f"must have at most {NAME_CHARS_MAX} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise invalid(field, "must not contain control characters")


def check_idempotency_key(text: str) -> None:
    """Empty for none, or up to 128 characters."""
    if len(text) > _KEY_CHARS_MAX:
        raise invalid("idempotency_key", f"must have at most {_KEY_CHARS_MAX} characters")


def check_limit(field: str, value: float | None) -> None:
    """None for no change, or a number above 0 and up to a million."""
    if value is not None and not (math.isfinite(value) and 0 < value <= _LIMIT_MAX):
        raise invalid(field, f"must be above 0 and at most {_LIMIT_MAX}")


def check_quota(field: str, value: int) -> None:
    """0 for none, or a number up to 2**53, which every client can hold exactly."""
    if not 0 <= value <= _QUOTA_MAX:
        raise invalid(field, f"must be at most {_QUOTA_MAX}")
