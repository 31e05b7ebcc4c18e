"""What keyvault keeps and passes around: plain values without behaviour, and never a plaintext key."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class KeyState(enum.Enum):
    """The state of an account's KMS key."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    # Off, and destroyed once it is due, unless that is called off.
    PENDING_DELETION = "pending deletion"
    # Kept for ever, so that nothing can be made again under the account's id.
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as keyvault knows it. Times are microseconds since the Unix epoch."""

    id: str
    state: KeyState
    suspended: bool
    version: int
    # The KMS of the current version of its key; empty once that is destroyed.
    provider: str
    data_keys: int
    create_us: int
    rotate_us: int
    audit_sequence: int
    audit_hash: bytes


@dataclass(frozen=True, slots=True)
class AccountKey:
    """One version of an account's KMS key: the provider's handle of it, useless without the provider."""

    account: str
    version: int
    handle: bytes
    provider: str


@dataclass(frozen=True, slots=True)
class Wrapping:
    """The encryption context of a wrapped data key: only with all of it does the key unwrap."""

    account: str
    resource: str
    purpose: str
    key_id: str


@dataclass(frozen=True, slots=True)
class DataKeyRecord:
    """A data key, wrapped under a version of its account's key."""

    wrapping: Wrapping
    version: int
    wrapped: bytes
    # How often it was released to be sealed with.
    releases: int = 0


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """An account on its way to another key, and who wanted that; times as in AccountRecord."""

    key: AccountKey
    start_us: int
    action: str
    peer: str
    token_id: str
    method: str
    request_id: str


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """How far a move is: data keys wrapped under the new key already, and all."""

    version: int
    provider: str
    start_us: int
    rewrapped: int
    data_keys: int


@dataclass(frozen=True, slots=True)
class AgedKey:
    """A data key that another took the place of, and when."""

    key_id: str
    aged_us: int


@dataclass(frozen=True, slots=True)
class ResealRecord:
    """A service's leave to seal an account's data anew: its job, and the resource it is to go on after."""

    account: str
    peer: str
    job_id: str
    token_id: str
    request_id: str
    after: str
    next_us: int


@dataclass(frozen=True, slots=True)
class PermitRecord:
    """A permit that was issued for a job."""

    account: str
    job_id: str
    peer: str
    expires_us: int
    ended: bool
