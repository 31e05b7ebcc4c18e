"""The form of object keys, whatever keeps the objects: none leads out of its place."""

from __future__ import annotations

import re

KEY = re.compile(r"[0-9a-z][0-9a-z_.-]{0,127}(/[0-9a-z][0-9a-z_.-]{0,127}){0,7}")


def is_key(key: str) -> bool:
    """Whether it is an object key."""
    return KEY.fullmatch(key) is not None


def check_key(key: str) -> None:
    """Raises ValueError for what is not an object key."""
    if not is_key(key):
        raise ValueError("not an object key")


def check_prefix(prefix: str) -> None:
    """Raises ValueError for what is neither empty nor a key and a slash."""
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError("a prefix ends in a slash")
        check_key(prefix[:-1])
