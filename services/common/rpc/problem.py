"""Errors as problem details (RFC 9457), for callers who come by HTTP and read no gRPC status.

Whoever refuses a call writes the whole answer, in a header that the edge makes the body of. The
edge asks for it with a header of its own, which no client can send. It is ASCII, as headers are.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from services.common.errors import Kind, SealcombError

PROBLEM_HEADER = "sealcomb-problem"
PROBLEM_WANTED_HEADER = "sealcomb-problem-wanted"
_TYPE = "https://sealcomb.dev/problems/"
_ITEMS_MAX = 16
# As google.rpc.Code says.
HTTP_STATUS = {
    Kind.INVALID_ARGUMENT: 400,
    Kind.DEADLINE_EXCEEDED: 504,
    Kind.NOT_FOUND: 404,
    Kind.ALREADY_EXISTS: 409,
    Kind.PERMISSION_DENIED: 403,
    Kind.RESOURCE_EXHAUSTED: 429,
    Kind.FAILED_PRECONDITION: 400,
    Kind.ABORTED: 409,
    Kind.OUT_OF_RANGE: 400,
    Kind.UNIMPLEMENTED: 501,
    Kind.INTERNAL: 500,
    Kind.UNAVAILABLE: 503,
    Kind.DATA_LOSS: 500,
    Kind.UNAUTHENTICATED: 401,
}


def problem_json(error: SealcombError, request_id: str) -> str:
    """The error as an object of the media type application/problem+json."""
    return problem_text(HTTP_STATUS[error.kind], error, request_id)


def problem_text(http_status: int, error: SealcombError, request_id: str) -> str:
    """The same under another HTTP status than the kind's own."""
    problem: dict[str, Any] = {
        "type": _TYPE + error.reason.lower().replace("_", "-"),
        "title": HTTPStatus(http_status).phrase,
        "status": http_status,
        "detail": error.message,
        "code": error.kind.name,
        "reason": error.reason,
    }
    if request_id:
        problem["request_id"] = request_id
    if error.fields:
        problem["field_violations"] = [
            {"field": one.field, "description": one.description} for one in error.fields[:_ITEMS_MAX]
        ]
    if error.quotas:
        problem["quota_violations"] = [
            {"subject": one.subject, "description": one.description} for one in error.quotas[:_ITEMS_MAX]
        ]
    if error.retry_after_s is not None:
        problem["retry_after_s"] = round(error.retry_after_s, 3)
    return json.dumps(problem, separators=(",", ":"))


def retry_after(error: SealcombError) -> str | None:
    """The value of a Retry-After header, in whole seconds; None where the error names no time."""
    return None if error.retry_after_s is None else str(max(1, math.ceil(error.retry_after_s)))
