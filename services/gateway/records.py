"""The gateway's records as its store gives them: accounts and tokens, readable in ids and numbers alone."""

from __future__ import annotations

from dataclasses import dataclass, field

CREATING, ACTIVE, DELETING = "creating", "active", "deleting"
# The account column of operator tokens.
OPERATOR = ""


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One account as stored."""

    id: str
    create_time_ms: int
    state: str
    suspended: bool
    calls_per_second: float | None
    burst: int | None
    sealed_name: bytes | None = None
    idempotency_tag: bytes | None = None
    request_tag: bytes | None = None
    calls_in_flight: int | None = None
    # Names of `usage.quotas` to the most that may be used; what is not here has no quota.
    quotas: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token as stored."""

    id: str
    account: str
    digest: bytes
    scopes: tuple[str, ...]
    restricted: bool
    sealed: bytes | None
    create_time_ms: int
    expire_time_ms: int | None = None
    revoke_time_ms: int | None = None
    used_time_ms: int | None = None
    idempotency_tag: bytes | None = None
    request_tag: bytes | None = None


class Taken(Exception):
    """A row with this idempotency tag is there already."""
