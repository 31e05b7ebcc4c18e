"""JSON that a source sent, read with suspicion: whatever is not as documented is SourceAnswerInvalid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from services.ingest.egress.client import Answer
from services.ingest.sources.contract import NAME_CHARS_MAX, SourceAnswerInvalid


class Row:
    """One JSON object. Readers without a default raise SourceAnswerInvalid when the field is not there."""

    def __init__(self, value: object, name: str = "answer") -> None:
        if not isinstance(value, dict):
            raise SourceAnswerInvalid(f"the source's {name} is no JSON object")
        self._fields: Mapping[str, Any] = value
        self._name = name

    def text(self, key: str) -> str:
        """A string that is not empty."""
        value = self._fields.get(key)
        if not isinstance(value, str) or not value:
            raise SourceAnswerInvalid(f"the source's {self._name} has no {key}")
        return value

    def text_or(self, key: str, default: str = "") -> str:
        """A string, or the default when it is missing or null."""
        value = self._fields.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise SourceAnswerInvalid(f"{key} of the source's {self._name} is no text")
        return value

    def number_or(self, key: str, default: int = 0) -> int:
        """A number that is not negative; strings of digits count, since some vendors send them."""
        value = self._fields.get(key)
        if value is None:
            return default
        if isinstance(value, str) and value.isdecimal() and len(value) < 19:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise SourceAnswerInvalid(f"{key} of the source's {self._name} is no number")
        return value

    def flag(self, key: str) -> bool:
        """Whether a field is true; anything else is false."""
        return self._fields.get(key) is True

    def row(self, key: str) -> Row:
        """An object."""
        return Row(self._fields.get(key), key)

    def row_or_none(self, key: str) -> Row | None:
        """An object, or None when it is missing or null."""
        value = self._fields.get(key)
        return None if value is None else Row(value, key)

    def rows(self, key: str) -> list[Row]:
        """A list of objects."""
        return rows(self._fields.get(key), key)

    def rows_or_none(self, key: str) -> list[Row] | None:
        """A list of objects, or None when it is missing or null."""
        value = self._fields.get(key)
        return None if value is None else rows(value, key)

    def texts(self, key: str) -> list[str]:
        """A list of strings; empty when it is missing or null."""
        value = self._fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise SourceAnswerInvalid(f"{key} of the source's {self._name} is no list of texts")
        return list(value)

    def get(self, key: str) -> object:
        """A field as it is."""
        return self._fields.get(key)


def read_json(answer: Answer) -> object:
    """The answer's JSON."""
    try:
        value: object = json.loads(answer.content)
    # A RecursionError is how Python's parser ends a bomb of brackets.
    except (ValueError, RecursionError):
        raise SourceAnswerInvalid("the source's answer is no JSON") from None
    return value


def read_row(answer: Answer) -> Row:
    """The answer's JSON object."""
    return Row(read_json(answer))


def rows(value: object, name: str = "answer") -> list[Row]:
    """A JSON list of objects."""
    if not isinstance(value, list):
        raise SourceAnswerInvalid(f"the source's {name} is no list")
    return [Row(entry, name) for entry in value]


def cut(name: str) -> str:
    """A name short enough for an item."""
    return name[:NAME_CHARS_MAX]


def web_address(text: str) -> str:
    """An address as people open it, or nothing when it is not one of the web."""
    try:
        scheme = urlsplit(text).scheme
    except ValueError:
        return ""
    return text if scheme in ("http", "https") and len(text) <= 4096 else ""
