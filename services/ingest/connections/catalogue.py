"""Which sources there are, what callers may set for them, and the operator's OAuth clients.

Settings are validated by the source's own model; a refusal names the field and never repeats a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from services.common.errors import invalid
from services.ingest.connections.records import Client
from services.ingest.sources.contract import SourceSettings, SourceType
from services.ingest.sources.settings import parse_settings

_SETTINGS_BYTES_MAX = 64 * 1024
_CLIENTS_BYTES_MAX = 1024 * 1024


class Catalogue:
    """The sources of this installation."""

    def __init__(self, types: Iterable[SourceType[Any]], clients: Mapping[str, Client] | None = None) -> None:
        self._types = {found.kind: found for found in types}
        self._clients = dict(clients or {})
        unknown = set(self._clients) - set(self._types)
        if unknown:
            raise ValueError(f"OAuth clients for sources that do not exist: {', '.join(sorted(unknown))}")

    @property
    def types(self) -> list[SourceType[Any]]:
        """All sources, in the order of their kinds."""
        return [self._types[kind] for kind in sorted(self._types)]

    def type_of(self, kind: str) -> SourceType[Any]:
        """A source by its kind. Raises InvalidArgument."""
        found = self._types.get(kind)
        if found is None:
            raise invalid("kind", "is not a source; see ListSourceTypes", reason="SOURCE_UNKNOWN")
        return found

    def client_of(self, kind: str) -> Client | None:
        """The operator's client for a source."""
        return self._clients.get(kind)

    def settings_of(self, kind: str, values: Mapping[str, Any]) -> SourceSettings:
        """What a caller set, checked. Raises InvalidArgument naming the fields."""
        model = self.type_of(kind).settings_model
        if len(json.dumps(dict(values))) > _SETTINGS_BYTES_MAX:
            raise invalid("settings", f"are larger than {_SETTINGS_BYTES_MAX} bytes")
        return parse_settings(model, _whole(values))

    def hosts_of(self, kind: str, settings: SourceSettings) -> frozenset[str]:
        """The hosts that a token is sent to under these settings."""
        return frozenset(self.type_of(kind).hosts(settings))


def read_clients(path: Path | None) -> dict[str, Client]:
    """The operator's clients in a JSON file: `{"github": {"client_id": "...", "client_secret": "..."}}`.

    Raises ValueError, without a word of the content.
    """
    if path is None:
        return {}
    try:
        raw = path.read_bytes()
        if len(raw) > _CLIENTS_BYTES_MAX:
            raise ValueError
        clients = {
            kind: Client(_text(entry["client_id"]), _text(entry.get("client_secret", ""), 0))
            for kind, entry in json.loads(raw).items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path.name} must hold a JSON object of sources, each with client_id and client_secret"
        ) from None
    return clients


def _text(value: object, chars_min: int = 1) -> str:
    if not isinstance(value, str) or len(value) < chars_min:
        raise ValueError
    return value


def _whole(value: Any) -> Any:
    """Numbers of a Struct are floats; those that are whole become integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(inner) for inner in value]
    return value
