"""Errors as gRPC statuses with google.rpc details: the one place where these are made.

What is not a SealcombError becomes INTERNAL with a fixed message and the request id; its text
stays inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import grpc
import grpc.aio
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import FieldViolation, Kind, NotFound, QuotaViolation, SealcombError

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "sealcomb.dev"
_FIELDS_MAX = 32


def status_proto(error: SealcombError, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo always; other details where they apply."""
    status = status_pb2.Status(code=error.kind.value, message=error.message)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id} if request_id else {}
    )
    status.details.add().Pack(info)
    if error.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field, description=violation.description
            )
            for violation in error.fields[:_FIELDS_MAX]
        ]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    if error.quotas:
        quotas = [
            error_details_pb2.QuotaFailure.Violation(subject=quota.subject, description=quota.description)
            for quota in error.quotas
        ]
        status.details.add().Pack(error_details_pb2.QuotaFailure(violations=quotas))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(max(0, int(error.retry_after_s * 1e9)))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def internal_error() -> SealcombError:
    """What a caller sees of an error that nobody foresaw."""
    return SealcombError("an internal error; report the request id", reason="INTERNAL")


def grpc_code(kind: Kind) -> grpc.StatusCode:
    """The grpc module's name of a kind."""
    return grpc.StatusCode[kind.name]


def error_from_call(error: grpc.aio.AioRpcError) -> SealcombError:
    """The error that a peer's status stands for, so that it passes through with its reason and fields."""
    code = error.code()
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        return internal_error()
    status = _details_of(error)
    if status is None:
        return _plain_error(code)
    return _from_status(status)


def _plain_error(code: grpc.StatusCode) -> SealcombError:
    # A status without our details was made by the transport, so its text may name inner addresses.
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        made = SealcombError("the call did not end in time; try again", reason="DEADLINE_EXCEEDED")
        made.kind = Kind.DEADLINE_EXCEEDED
        return made
    if code is grpc.StatusCode.CANCELLED:
        made = SealcombError("the call was cancelled", reason="CANCELLED")
        made.kind = Kind.ABORTED
        return made
    made = SealcombError(
        "a part of the service is not reachable; try again", reason="UNAVAILABLE", retry_after_s=1.0
    )
    made.kind = Kind.UNAVAILABLE
    return made


def _from_status(status: status_pb2.Status) -> SealcombError:
    kind = Kind(status.code)
    # A class of its own, since callers tell by it what a peer does not have.
    made = NotFound(status.message) if kind is Kind.NOT_FOUND else SealcombError(status.message)
    made.kind = kind
    for detail in status.details:
        info, bad, quota, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.QuotaFailure(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            made.reason = info.reason
        elif detail.Unpack(bad):
            made.fields = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif detail.Unpack(quota):
            made.quotas = tuple(QuotaViolation(v.subject, v.description) for v in quota.violations)
        elif detail.Unpack(retry):
            made.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return made


def _details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()):
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None
