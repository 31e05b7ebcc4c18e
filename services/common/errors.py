"""The one error hierarchy of the services.

Domain code raises these; the rpc package alone turns them into gRPC statuses. A message is for
the caller: lowercase, one sentence, what to do next. It must never carry plaintext, a name, a
token, a key or anything about another account. This module imports nothing of gRPC.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Kind(enum.Enum):
    """What went wrong, in the words of google.rpc.Code."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path as in `points[3].vector`, and why it is bad."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One exhausted limit: what it bounds, and the limit in words."""

    subject: str
    description: str


class SealcombError(Exception):
    """Base of all errors that a caller may see.

    `reason` is stable UPPER_SNAKE for machines, `message` is for people. `retry_after_s`, where
    set, is when the same call can succeed.
    """

    kind: Kind = Kind.INTERNAL
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        fields: Sequence[FieldViolation] = (),
        quotas: Sequence[QuotaViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.fields = tuple(fields)
        self.quotas = tuple(quotas)
        self.retry_after_s = retry_after_s


class InvalidArgument(SealcombError):
    """The request is wrong whatever the state of the system; `fields` says where."""

    kind = Kind.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFound(SealcombError):
    """There is no such thing in the caller's account; also the answer for a foreign id."""

    kind = Kind.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(SealcombError):
    """The name or key is taken within the caller's account."""

    kind = Kind.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class Unauthenticated(SealcombError):
    """The call carries no valid credential."""

    kind = Kind.UNAUTHENTICATED
    reason = "TOKEN_INVALID"


class PermissionDenied(SealcombError):
    """The credential is valid but does not allow this."""

    kind = Kind.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class ResourceExhausted(SealcombError):
    """A limit is reached."""

    kind = Kind.RESOURCE_EXHAUSTED
    reason = "LIMIT_REACHED"


class FailedPrecondition(SealcombError):
    """The state must be changed first, as the message says."""

    kind = Kind.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class KeyDisabled(FailedPrecondition):
    """The account's key is disabled, so its data cannot be opened."""

    reason = "KEY_DISABLED"

    def __init__(self) -> None:
        super().__init__("the account's key is disabled; enable it with KeyService.EnableKey")


class Aborted(SealcombError):
    """Two calls collided; repeat the whole call."""

    kind = Kind.ABORTED
    reason = "CONFLICT"


class Unavailable(SealcombError):
    """A part is down or overloaded; the same call may work soon."""

    kind = Kind.UNAVAILABLE
    reason = "UNAVAILABLE"


class DeadlineExceeded(SealcombError):
    """The work did not end in time."""

    kind = Kind.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class DataLoss(SealcombError):
    """Stored data does not open: changed, truncated, swapped or under another key."""

    kind = Kind.DATA_LOSS
    reason = "OPEN_FAILED"


class Unimplemented(SealcombError):
    """The method does not exist here."""

    kind = Kind.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


def invalid(field: str, description: str, *, reason: str | None = None) -> InvalidArgument:
    """An InvalidArgument about one field, whose message repeats both."""
    return InvalidArgument(
        f"{field}: {description}", reason=reason, fields=[FieldViolation(field, description)]
    )
