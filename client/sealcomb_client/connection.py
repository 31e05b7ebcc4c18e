"""Where the edge is and which token opens it: read from the environment or from an env file.

The names are those that a standalone installation writes to `data/client.env`. A token is never
part of a repr.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_ENV_FILE = Path("data/client.env")
_ENDPOINT = "SEALCOMB_ENDPOINT"
_CA_FILE = "SEALCOMB_CA_FILE"
_TOKEN = "SEALCOMB_TOKEN"  # noqa: S105  (a name, not a token)
_OPERATOR_TOKEN = "SEALCOMB_OPERATOR_TOKEN"  # noqa: S105


class ConnectionIncomplete(Exception):
    """A setting that is needed is missing; the text says which and how to give it."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One way to the edge: `host:port`, the CA file that vouches for it, and the caller's tokens."""

    endpoint: str
    # None: the system's own authorities.
    ca_file: Path | None = None
    token: str = field(default="", repr=False)
    operator_token: str = field(default="", repr=False)

    @classmethod
    def from_env(cls, env_file: Path | None = None, environ: Mapping[str, str] | None = None) -> Connection:
        """The connection that the environment names, filled up from an env file.

        Without `env_file`, `data/client.env` is used where it exists. Raises ConnectionIncomplete.
        """
        values = dict(_read_env_file(env_file))
        values.update((os.environ if environ is None else environ).items())
        endpoint = values.get(_ENDPOINT, "")
        if not endpoint:
            raise ConnectionIncomplete(f"set {_ENDPOINT}, or give an env file such as {DEFAULT_ENV_FILE}")
        ca_file = values.get(_CA_FILE, "")
        return cls(
            endpoint,
            Path(ca_file) if ca_file else None,
            values.get(_TOKEN, ""),
            values.get(_OPERATOR_TOKEN, ""),
        )


def _read_env_file(path: Path | None) -> Mapping[str, str]:
    if path is None:
        if not DEFAULT_ENV_FILE.exists():
            return {}
        path = DEFAULT_ENV_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConnectionIncomplete(f"{path} cannot be read: {error.strerror}") from None
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            values[name.removeprefix("export ").strip()] = value.strip().strip("'\"")
    return values
