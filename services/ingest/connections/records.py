"""What a connection is: its description, its credential, and what was asked for when it was begun.

The sealed forms are JSON of these fields. No repr shows a secret or what a caller set.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PURPOSE = "connection"


class ConnectionState(enum.Enum):
    """Where a connection stands."""

    CONNECTED = "connected"
    REFUSED = "refused"
    DISCONNECTING = "disconnecting"


class Revoked(enum.Enum):
    """What a provider said to a revocation."""

    REVOKED = "revoked"
    NOT_SUPPORTED = "not supported"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client: the operator's or an account's own. The secret is empty for a public client."""

    id: str
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a provider gave. `expire_s` is 0 where it said nothing; `scopes` are empty likewise."""

    access: str = field(repr=False)
    refresh: str = field(default="", repr=False)
    expire_s: float = 0.0
    life_s: float = 0.0
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What a connection reaches, and under which grant. `own_client` is the account's, if it has one."""

    kind: str
    settings: Mapping[str, Any] = field(repr=False)
    scopes_asked: tuple[str, ...] = ()
    scopes_granted: tuple[str, ...] = ()
    own_client: bool = False


@dataclass(frozen=True, slots=True)
class Secrets:
    """What opens a source: tokens of OAuth with the client they belong to, or a secret as it was given."""

    tokens: Tokens | None = None
    client: Client | None = None
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection that was begun and waits for the user's grant."""

    connection_id: str
    description: Description
    redirect_uri: str
    # Only an account's own client; the operator's is looked up again.
    client: Client | None
    verifier: str = field(repr=False)
    device_code: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it is shown."""

    id: str
    description: Description
    state: ConnectionState
    create_ms: int


def to_bytes(record: Description | Secrets | Flow) -> bytes:
    """The record as it is sealed."""
    return json.dumps(asdict(record)).encode()


def description_of(raw: bytes) -> Description:
    """The description in bytes that `to_bytes` made."""
    return _description(json.loads(raw))


def secrets_of(raw: bytes) -> Secrets:
    """The secrets in bytes that `to_bytes` made."""
    fields = json.loads(raw)
    tokens = fields["tokens"]
    if tokens is not None:
        tokens = Tokens(**(tokens | {"scopes": tuple(tokens["scopes"])}))
    return Secrets(tokens, _client(fields["client"]), fields["secret"])


def flow_of(raw: bytes) -> Flow:
    """The flow in bytes that `to_bytes` made."""
    fields = json.loads(raw)
    return Flow(
        **(fields | {"description": _description(fields["description"]), "client": _client(fields["client"])})
    )


def _description(fields: dict[str, Any]) -> Description:
    lists = {name: tuple(fields[name]) for name in ("scopes_asked", "scopes_granted")}
    return Description(**(fields | lists))


def _client(fields: dict[str, Any] | None) -> Client | None:
    return None if fields is None else Client(**fields)
