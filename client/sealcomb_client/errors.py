"""The one error of the SDK: a google.rpc.Status as Python sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path, and why it is bad."""

    field: str
    description: str


class ApiError(Exception):
    """A call that failed.

    `code` is the gRPC code's name, such as NOT_FOUND; `reason` is stable and for programs;
    `retry_after_s`, where set, is when the same call can succeed; `request_id` is what to report.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        fields: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(f"{message} ({reason or code})")
        self.code = code
        self.message = message
        self.reason = reason
        self.fields = fields
        self.retry_after_s = retry_after_s
        self.request_id = request_id


def from_rpc_error(error: grpc.RpcError) -> ApiError:
    """The ApiError of what grpc raised."""
    # Errors of calls are grpc.Call as well, which their declared types do not say.
    call = cast("grpc.Call", error)
    code = call.code().name
    status = _status_of(call)
    if status is None:
        return ApiError(code, call.details() or "the call failed")
    reason, request_id, retry_after_s = "", "", None
    fields: list[FieldViolation] = []
    for detail in status.details:
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason, request_id = info.reason, info.metadata.get("request_id", "")
        elif detail.Unpack(bad):
            fields += [
                FieldViolation(violation.field, violation.description) for violation in bad.field_violations
            ]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return ApiError(
        code,
        status.message,
        reason=reason,
        fields=tuple(fields),
        retry_after_s=retry_after_s,
        request_id=request_id,
    )


def _status_of(error: grpc.Call) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except ValueError:
                # DecodeError is a ValueError; a broken detail must not hide the status itself.
                return None
    return None
