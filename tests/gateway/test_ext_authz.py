"""The authorization server on its socket: every request is answered, and nothing slips by."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import stat
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from google.rpc import error_details_pb2, status_pb2
from structlog.testing import capture_logs

from services.common import tracing
from services.gateway import ext_authz
from services.gateway.ext_authz import ExtAuthzServer
from services.gateway.limits import LimitChange
from tests.common.collector import collecting
from tests.gateway.fakes import Policy

READ = "/sealcomb.v1.VectorService/Query"
FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path)


@pytest.fixture
async def socket_path(policy: Policy, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "policy.sock"
    server = ExtAuthzServer(policy.authorizer, path)
    await server.start()
    yield path
    await server.stop()


def request(path: str, token: str | None = None, *lines: str) -> bytes:
    authorization = [] if token is None else [f"authorization: Bearer {token}"]
    head = [f"POST {path} HTTP/1.1", "host: policy", *authorization, "sealcomb-client: 192.0.2.1", *lines]
    return ("\r\n".join([*head, "content-length: 0"]) + "\r\n\r\n").encode()


async def ask(
    socket_path: Path, *sent: bytes, answers: int | None = None
) -> list[tuple[int, dict[str, str]]]:
    """Sends piece by piece on one connection; the answers, one a piece unless told, fewer if it is closed."""
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    found: list[tuple[int, dict[str, str]]] = []
    try:
        for piece in sent:
            writer.write(piece)
            await asyncio.sleep(0.001)
        while len(found) < (len(sent) if answers is None else answers):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            found.append((int(lines[0].split()[1]), headers))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return found


def status_of(headers: dict[str, str]) -> status_pb2.Status:
    raw = headers["grpc-status-details-bin"]
    assert not raw.endswith("=")
    return status_pb2.Status.FromString(base64.b64decode(raw + "=" * (-len(raw) % 4)))


async def test_an_allowed_call_gets_its_context_and_account(policy: Policy, socket_path: Path) -> None:
    account, token = await policy.new_account()
    ((code, headers),) = await ask(socket_path, request(READ, token))
    assert code == 200
    assert policy.verifier.verify(headers["sealcomb-context"]).account == account
    assert headers["sealcomb-account"] == account


async def test_an_operator_gets_no_account_header(policy: Policy, socket_path: Path) -> None:
    ((code, headers),) = await ask(
        socket_path, request("/sealcomb.v1.AccountService/GetAccount", policy.operator_token)
    )
    assert code == 200
    assert "sealcomb-account" not in headers


async def test_a_refused_call_gets_its_status_twice_the_same(policy: Policy, socket_path: Path) -> None:
    account, _ = await policy.new_account()
    _, token = await policy.new_token(account, "read")
    sent = request("/sealcomb.v1.VectorService/Upsert", token, "x-request-id: r-1")
    ((code, headers),) = await ask(socket_path, sent)
    status = status_of(headers)
    assert (code, headers["grpc-status"], status.code) == (403, "7", 7)
    assert unquote(headers["grpc-message"]) == status.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["request_id"]) == ("SCOPE_MISSING", "sealcomb.dev", "r-1")


async def test_a_rate_refusal_carries_retry_info_and_retry_after(policy: Policy, socket_path: Path) -> None:
    _, token = await policy.new_account(limits=LimitChange(0.5, 1))
    first, second = await ask(socket_path, request(READ, token), request(READ, token))
    assert first[0] == 200
    assert (second[0], second[1]["grpc-status"], second[1]["retry-after"]) == (429, "8", "2")
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status_of(second[1]).details)
    assert retry.retry_delay.ToMilliseconds() == 2000


async def test_each_refusal_has_its_own_request_id_though_the_rest_is_the_same(
    policy: Policy, socket_path: Path
) -> None:
    account, _ = await policy.new_account()
    _, token = await policy.new_token(account, "read")
    path = "/sealcomb.v1.VectorService/Upsert"
    ids = [str(uuid.uuid4()), str(uuid.uuid4()), "of another form"]
    for more in ((), ("sealcomb-problem-wanted: POST",)):
        sent = [request(path, token, f"x-request-id: {one}", *more) for one in ids]
        answers = await ask(socket_path, *sent)
        for wanted, (code, headers) in zip(ids, answers, strict=True):
            assert code == 403
            if more:
                told = json.loads(headers["sealcomb-problem"])
                assert (told["request_id"], told["reason"]) == (wanted, "SCOPE_MISSING")
            else:
                info = error_details_pb2.ErrorInfo()
                assert status_of(headers).details[0].Unpack(info)
                assert (info.metadata["request_id"], info.reason) == (wanted, "SCOPE_MISSING")


async def test_requests_in_one_segment_or_byte_by_byte_are_all_answered(
    policy: Policy, socket_path: Path
) -> None:
    _, token = await policy.new_account()
    one = request(READ, token)
    assert [code for code, _ in await ask(socket_path, one * 3, answers=3)] == [200, 200, 200]
    single = [bytes([byte]) for byte in one]
    assert [code for code, _ in await ask(socket_path, *single, answers=1)] == [200]


async def test_a_slow_decision_holds_back_what_follows_on_its_connection(
    policy: Policy, socket_path: Path
) -> None:
    account, token = await policy.new_account()
    _, narrow = await policy.new_token(account, "read", collections=("honey",))
    answers = await ask(socket_path, request(READ, narrow), request(READ, token), request(READ, narrow))
    contexts = [policy.verifier.verify(headers["sealcomb-context"]) for _, headers in answers]
    assert [context.collections for context in contexts] == [("honey",), (), ("honey",)]


async def test_a_decision_that_takes_too_long_refuses_the_call(
    policy: Policy, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, _ = await policy.new_account()
    _, narrow = await policy.new_token(account, "read", collections=("honey",))
    policy.profiles.drop_all()

    async def hang(resource: str, purpose: str, key_id: str) -> object:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(policy.keyvault, "get_data_key", hang)
    ((code, headers),) = await ask(socket_path, request(READ, narrow))
    assert (code, headers["grpc-status"]) == (503, "14")


async def test_a_fault_in_the_decision_refuses_the_call_and_tells_nothing(
    policy: Policy, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A17: whatever breaks, the call is refused; neither the answer nor the log has the error's text."""
    _, token = await policy.new_account()

    def broken(token_id: str, digest: bytes) -> None:
        raise RuntimeError("canary: SELECT * FROM tokens; /var/lib/secret")

    monkeypatch.setattr(policy.sessions, "load", broken)
    with capture_logs() as logs:
        ((code, headers),) = await ask(socket_path, request(READ, token))
    assert (code, headers["grpc-status"]) == (503, "14")
    assert "sealcomb-context" not in headers
    assert "canary" not in str(headers) + str(status_of(headers))
    assert token not in str(logs)


async def test_a_decision_that_takes_too_long_refuses_the_call_and_fills_no_log(
    policy: Policy, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: a database that hangs is one line of the change feed's, not a trace of the stack for each call."""
    _, token = await policy.new_account()

    async def hang(token_id: str, digest: bytes) -> None:
        await asyncio.Event().wait()

    policy.store.is_local = False
    monkeypatch.setattr(policy.sessions, "_read_elsewhere", hang)
    monkeypatch.setattr(ext_authz, "DECIDE_S", 0.05)
    with capture_logs() as logs:
        ((code, headers),) = await ask(socket_path, request(READ, token))
    assert (code, headers["grpc-status"]) == (503, "14")
    assert not logs


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /x\r\n\r\n",
        b"POST /x HTTP/1.0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nauthorization: a\r\nauthorization: b\r\n\r\n",
        b"POST /x HTTP/1.1\r\nx: " + b"a" * 100_000,
        b"\x00" * 70_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_envoy_would_not_send_closes_the_connection(socket_path: Path, sent: bytes) -> None:
    assert await ask(socket_path, sent) == []


async def test_only_this_user_reaches_the_socket(socket_path: Path) -> None:
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


async def test_stopping_closes_connections_and_removes_the_socket(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    path.write_text("left by an earlier process")
    server = ExtAuthzServer(policy.authorizer, path)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    await asyncio.sleep(0)
    await server.stop()
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert not path.exists()


async def test_a_trace_begins_with_the_decision_whatever_it_is(policy: Policy, socket_path: Path) -> None:
    """B3: the span has the method, the request id and the outcome; the service is told its place."""
    account, token = await policy.new_account()
    _, narrow = await policy.new_token(account, "read", collections=("honey",))
    write = "/sealcomb.v1.VectorService/Upsert"
    with collecting() as collector:
        with tracing.sending_traces("gateway", collector.endpoint):
            sent = [
                request(READ, token, "x-request-id: r-1", f"traceparent: {FOREIGN}"),
                request(READ, narrow, "x-request-id: r-2"),
                request(write, narrow, "x-request-id: r-3"),
                request("/sealcomb.v1.VectorService/NoSuch", token, "x-request-id: r-4"),
            ]
            answers = await ask(socket_path, *sent, answers=4)
        found = {
            fields["sealcomb.request_id"]: (span, fields)
            for _, span in collector.spans
            if (fields := {one.key: one.value.string_value for one in span.attributes})
        }
    assert [code for code, _ in answers] == [200, 200, 403, 403]
    assert found.keys() == {"r-1", "r-2", "r-3"}
    assert [found[one][1]["rpc.grpc.status_code"] for one in sorted(found)] == [
        "OK",
        "OK",
        "PERMISSION_DENIED",
    ]
    for one, (_, headers) in zip(("r-1", "r-2"), answers, strict=False):
        span = found[one][0]
        assert headers["traceparent"].startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-")
        assert not span.parent_span_id
    assert not any(token.encode() in body or account.encode() in body for body in collector.requests)
    assert "traceparent" not in answers[2][1]


async def test_without_a_collector_no_call_carries_a_place_in_a_trace(
    policy: Policy, socket_path: Path
) -> None:
    _, token = await policy.new_account()
    ((code, headers),) = await ask(socket_path, request(READ, token, f"traceparent: {FOREIGN}"))
    assert (code, "traceparent" in headers) == (200, False)
