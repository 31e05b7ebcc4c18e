"""Errors become google.rpc statuses and survive the way through a peer unchanged."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.common import errors
from services.common.errors import FieldViolation, Kind, QuotaViolation, invalid
from services.common.rpc.status import DETAILS_KEY, error_from_call, grpc_code, status_proto


def _unpack(status: status_pb2.Status) -> dict[str, object]:
    found: dict[str, object] = {}
    for detail in status.details:
        name = detail.TypeName().rsplit(".", 1)[-1]
        message = getattr(error_details_pb2, name)()
        assert detail.Unpack(message)
        found[name] = message
    return found


def _call_error(code: grpc.StatusCode, text: str, status: status_pb2.Status | None) -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata()
    if status is not None:
        trailers.add(DETAILS_KEY, status.SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=text)


def test_every_kind_is_a_grpc_code_of_the_same_number() -> None:
    for kind in Kind:
        assert grpc_code(kind).value[0] == kind.value


def test_a_bad_field_is_named_in_badrequest() -> None:
    found = _unpack(status_proto(invalid("points[3].vector", "has 3 values, not 4"), "r1"))
    bad = found["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("points[3].vector", "has 3 values, not 4")
    ]
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (
        "INVALID_ARGUMENT",
        "sealcomb.dev",
        "r1",
    )


def test_a_reached_limit_says_when_to_come_back() -> None:
    error = errors.ResourceExhausted(
        "too many calls", quotas=[QuotaViolation("account", "200 calls per second")], retry_after_s=0.25
    )
    found = _unpack(status_proto(error, ""))
    retry, quota = found["RetryInfo"], found["QuotaFailure"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert isinstance(quota, error_details_pb2.QuotaFailure)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert quota.violations[0].subject == "account"


def test_a_peers_error_passes_through_with_reason_and_fields() -> None:
    sent = errors.InvalidArgument(
        "bad", reason="WRONG_DIMENSION", fields=[FieldViolation("vector", "is short")]
    )
    got = error_from_call(_call_error(grpc.StatusCode.INVALID_ARGUMENT, "bad", status_proto(sent, "r")))
    assert (got.kind, got.reason, got.message, got.fields) == (
        sent.kind,
        sent.reason,
        sent.message,
        sent.fields,
    )


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN]
)
def test_the_text_of_a_transport_failure_stays_inside(code: grpc.StatusCode) -> None:
    """A17: transport errors name inner addresses."""
    got = error_from_call(_call_error(code, "failed to connect to ipv4:10.0.0.7:4000", None))
    assert "10.0.0.7" not in got.message
    assert got.kind in (Kind.UNAVAILABLE, Kind.INTERNAL)


def test_an_unforeseen_status_of_a_peer_shows_nothing_of_its_details() -> None:
    status = status_pb2.Status(code=13, message="secret text")
    got = error_from_call(_call_error(grpc.StatusCode.INTERNAL, "secret text", status))
    assert "secret" not in got.message


def test_what_a_peer_does_not_have_is_told_by_its_class() -> None:
    sent = errors.NotFound("there is no such data key", reason="KEY_NOT_FOUND")
    got = error_from_call(_call_error(grpc.StatusCode.NOT_FOUND, "no", status_proto(sent, "r")))
    assert isinstance(got, errors.NotFound)
    assert (got.kind, got.reason) == (Kind.NOT_FOUND, "KEY_NOT_FOUND")
