"""The authorization server that Envoy asks about every call: HTTP/1.1 over a Unix socket.

Envoy sends the call's method, path and a few named headers, never a body, one request at a time on
each connection. An allowed call is answered 200 with the headers to add; a refused one with a
status that Envoy turns into a reply, and the gRPC status itself in headers that it passes on.
Whatever goes wrong here refuses the call. Nothing of a request is ever logged.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast
from urllib.parse import quote

import structlog
from prometheus_client import Counter

from services.common import tracing
from services.common.context import HEADER
from services.common.errors import FieldViolation, Kind, QuotaViolation, SealcombError, Unavailable
from services.common.methods import EDGE_METHODS
from services.common.rpc.problem import (
    HTTP_STATUS,
    PROBLEM_HEADER,
    PROBLEM_WANTED_HEADER,
    problem_json,
    retry_after,
)
from services.common.rpc.status import status_proto
from services.common.tracing import TRACE_HEADER, Span
from services.gateway.authorizer import Authorizer
from services.gateway.sessions import Grant

ACCOUNT_HEADER = "sealcomb-account"
ADDRESS_HEADER = "sealcomb-client"
DECIDE_S = 0.8
_log = structlog.get_logger("ext_authz")
_REQUEST_BYTES_MAX = 64 * 1024
_CONNECTIONS_MAX = 4096
_OK = b"HTTP/1.1 200 OK\r\n"
_END = b"\r\n\r\n"

_decisions = Counter("sealcomb_edge_decisions_total", "Decisions about calls at the edge", ["outcome"])
_allowed = _decisions.labels("OK")

# Different refusals whose answers are kept. An id of the form of Envoy's stands for that of a call in them.
_ANSWERS_KEPT = 2048
_SOME_ID = "request-id-of-the-call-goes-here-000"
_PROBLEM_WANTED = PROBLEM_WANTED_HEADER.encode()


class Malformed(Exception):
    """A request that Envoy would not send; the connection is closed."""


@dataclass(frozen=True, slots=True)
class _Request:
    """How a refusal of one call is told."""

    id: str
    wants_problem: bool


class ExtAuthz(asyncio.Protocol):
    """One connection from Envoy."""

    def __init__(self, authorizer: Authorizer, server: ExtAuthzServer) -> None:
        self._authorizer = authorizer
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._pending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, unless there are too many or the server has stopped meanwhile."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.add(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what was being decided for it."""
        self._server.discard(self)
        if self._pending is not None:
            self._pending.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers every whole request."""
        self._buffer = self._buffer + data if self._buffer else data
        while self._buffer and self._pending is None:
            end = self._buffer.find(_END)
            if end < 0:
                if len(self._buffer) > _REQUEST_BYTES_MAX:
                    self.close()
                return
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            try:
                self._decide(head)
            except Malformed:
                _log.warning("malformed authorization request")
                self.close()
                return

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    def _decide(self, head: bytes) -> None:
        path, headers = _parse(head)
        authorization = headers.get(b"authorization")
        address = headers.get(ADDRESS_HEADER.encode(), b"").decode("latin-1")
        request = _Request(
            headers.get(b"x-request-id", b"").decode("latin-1")[:64], _PROBLEM_WANTED in headers
        )
        # Its name is the method's, so only a listed one has a span.
        span = tracing.begun(path, request.id) if path in EDGE_METHODS else None
        try:
            grant = self._authorizer.admit(path, authorization, address)
        except Exception as error:  # noqa: BLE001  (whatever it is, the call is refused)
            self._write(_refuse(error, request, span))
            return
        if grant is not None:
            self._write(_allow(grant, span))
            return
        self._pending = asyncio.get_running_loop().create_task(
            self._decide_slowly(path, authorization, address, request, span)
        )

    async def _decide_slowly(
        self, path: str, authorization: bytes | None, address: str, request: _Request, span: Span | None
    ) -> None:
        try:
            async with asyncio.timeout(DECIDE_S):
                grant = await self._authorizer.admit_slowly(path, authorization, address)
            answer = _allow(grant, span)
        except TimeoutError:
            # What does not answer is in the log as such; each call would say it too.
            answer = _refuse(_undecided(), request, span)
        except Exception as error:  # noqa: BLE001  (as above)
            answer = _refuse(error, request, span)
        self._pending = None
        self._write(answer)
        if self._buffer:
            self.data_received(b"")

    def _write(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


class ExtAuthzServer:
    """The server on its socket, which only this user can reach."""

    def __init__(self, authorizer: Authorizer, socket_path: Path) -> None:
        self._authorizer = authorizer
        self._path = socket_path
        self._connections: set[ExtAuthz] = set()
        self._server: asyncio.Server | None = None
        self._open = False

    async def start(self) -> None:
        """Listens; a socket file left by an earlier process is replaced."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: ExtAuthz(self._authorizer, self), str(self._path), backlog=1024
        )
        self._path.chmod(0o600)
        self._open = True

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        self._open = False
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        self._path.unlink(missing_ok=True)

    def add(self, connection: ExtAuthz) -> bool:
        """Takes a connection; False where it is one too many or too late."""
        if not self._open or len(self._connections) >= _CONNECTIONS_MAX:
            return False
        self._connections.add(connection)
        return True

    def discard(self, connection: ExtAuthz) -> None:
        """Forgets a connection that has ended."""
        self._connections.discard(connection)


def _parse(head: bytes) -> tuple[str, dict[bytes, bytes]]:
    lines = head.split(b"\r\n")
    request_line = lines[0].split(b" ")
    if len(request_line) != 3 or request_line[2] != b"HTTP/1.1":
        raise Malformed
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or name in headers:
            raise Malformed
        headers[name] = value.strip()
    # A body would be taken for the next request.
    if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
        raise Malformed
    return request_line[1].decode("latin-1"), headers


def _allow(grant: Grant, span: Span | None) -> bytes:
    _allowed.inc()
    if not grant.rendered:
        account = f"{ACCOUNT_HEADER}: {grant.account}\r\n" if grant.account else ""
        grant.rendered = f"{HEADER}: {grant.context}\r\n{account}content-length: 0\r\n\r\n".encode("ascii")
    if span is None:
        return _OK + grant.rendered
    # What the service does for the call is a part of the trace that begins here.
    place = f"{TRACE_HEADER}: {span.header}\r\n".encode("ascii")
    span.end("OK")
    return _OK + place + grant.rendered


def _undecided() -> Unavailable:
    return Unavailable("the call could not be authorised; try again", retry_after_s=1.0)


def _refuse(error: Exception, request: _Request, span: Span | None) -> bytes:
    if not isinstance(error, SealcombError):
        _log.error("decision failed", request_id=request.id, exc_info=error)
        error = _undecided()
    _decisions.labels(error.kind.name).inc()
    if span is not None:
        span.end(error.kind.name)
    # A flood is refused with few different answers, so that they are made once; the id is put in each.
    if len(request.id) == len(_SOME_ID) and request.id.isascii():
        template, is_binary = _template(
            error.kind, error.message, error.reason, tuple(error.fields), tuple(error.quotas),
            error.retry_after_s, request.wants_problem,
        )  # fmt: skip
        return _filled(template, is_binary, request.id)
    return _filled(*_rendered(error, request.wants_problem, request.id), request.id)


@lru_cache(_ANSWERS_KEPT)
def _template(
    kind: Kind,
    message: str,
    reason: str,
    fields: tuple[FieldViolation, ...],
    quotas: tuple[QuotaViolation, ...],
    retry_after_s: float | None,
    wants_problem: bool,
) -> tuple[tuple[bytes, bytes, bytes], bool]:
    error = SealcombError(message, reason=reason, fields=fields, quotas=quotas, retry_after_s=retry_after_s)
    error.kind = kind
    return _rendered(error, wants_problem, _SOME_ID)


def _filled(template: tuple[bytes, bytes, bytes], is_binary: bool, request_id: str) -> bytes:
    head, details, tail = template
    details = details.replace(_SOME_ID.encode(), request_id.encode())
    return head + (base64.b64encode(details).rstrip(b"=") if is_binary else details) + tail


def _rendered(
    error: SealcombError, wants_problem: bool, request_id: str
) -> tuple[tuple[bytes, bytes, bytes], bool]:
    """The answer before, in and after what has the request id, and whether that is sent in base64."""
    # The HTTP status is what Envoy acts upon; a gRPC client sees the gRPC status in the headers.
    head = [b"HTTP/1.1 %d refused\r\n" % HTTP_STATUS[error.kind]]
    wait = retry_after(error)
    if wait is not None:
        head += [b"retry-after: ", wait.encode(), b"\r\n"]
    if wants_problem:
        head += [PROBLEM_HEADER.encode(), b": "]
        details = problem_json(error, request_id).encode()
    else:
        head += [
            b"grpc-status: ", str(error.kind.value).encode(),
            b"\r\ngrpc-message: ", quote(error.message, safe=" !#$&'()*+,/:;<=>?@[]^`{|}~").encode(),
            b"\r\ngrpc-status-details-bin: ",
        ]  # fmt: skip
        details = status_proto(error, request_id).SerializeToString()
    return (b"".join(head), details, b"\r\ncontent-length: 0\r\n\r\n"), not wants_problem
