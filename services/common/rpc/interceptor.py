"""The one server interceptor: peer, context, errors, log line and metrics of every inner call.

Order: the method's rule (none: refused), the peer's SPIFFE id (not named: refused), its certificate
(expired or refused since the handshake: refused), the call context (missing, forged, for another
audience or method: refused), then the handler. What a refusal was for is logged; the caller learns
only that it was refused.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog

from services.common import telemetry, tracing
from services.common.alarms import Alarms
from services.common.clock import SystemClock
from services.common.context import HEADER, Caller, ContextRefused, ContextVerifier, acting_as
from services.common.errors import PermissionDenied, SealcombError, Unimplemented
from services.common.rpc.authorization import Rule, check_context
from services.common.rpc.in_flight import CallsInFlight
from services.common.rpc.open_streams import OpenStreams
from services.common.rpc.peer_certificates import PeerCertificates
from services.common.rpc.problem import PROBLEM_HEADER, PROBLEM_WANTED_HEADER, problem_json, retry_after
from services.common.rpc.requests import checked, tolerant
from services.common.rpc.status import DETAILS_KEY, grpc_code, internal_error, status_proto
from services.common.tls import SPIFFE_PREFIX

_log = structlog.get_logger("rpc")
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Counts what a call used: its account, request and response. In a stream of requests each is counted as it
# is read, without a response.
Count = Callable[[str, Any, Any], None]


class PeerRefused(PermissionDenied):
    """The peer's certificate names nobody who may call this method, or is not good any more."""

    reason = "PEER_REFUSED"

    def __init__(self, why: str) -> None:
        super().__init__("this peer may not call this method")
        self.why = why


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Checks every call of one server against its rules."""

    def __init__(self, service: str, rules: Mapping[str, Rule], verifier: ContextVerifier) -> None:
        self._service = service
        self._rules = rules
        self._verifier = verifier
        self._certificates: PeerCertificates | None = None
        self._alarms = Alarms(service, SystemClock())
        self._calls = CallsInFlight()
        self._streams: OpenStreams | None = None
        self._counts: Mapping[str, Count] = {}

    def watch_streams(self, streams: OpenStreams) -> None:
        """Ends streams whose token ends while they are open."""
        self._streams = streams

    def count_by(self, counts: Mapping[str, Count]) -> None:
        """Has what calls of some methods used counted."""
        self._counts = counts

    def watch_certificates(self, certificates: PeerCertificates) -> None:
        """Refuses calls under certificates that are not good any more; the server says which those are."""
        self._certificates = certificates

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wraps the method's handler; an unknown method is refused like an unlisted one."""
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            _log.warning("unknown method refused", service=self._service)
            return grpc.unary_unary_rpc_method_handler(self._unknown)
        deserializer = tolerant(handler.request_deserializer)
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(path, handler.stream_stream),
                deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(path, handler.unary_stream),
                deserializer,
                handler.response_serializer,
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(path, handler.stream_unary, streams=True),
                deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(path, handler.unary_unary), deserializer, handler.response_serializer
        )

    def _unary(self, path: str, behaviour: Any, *, streams: bool = False) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = time.perf_counter()
            request_id = _request_id(context)
            telemetry.begin_request(request_id)
            try:
                caller = self._admit(path, context)
                request = checked(request)
                if caller is None:
                    response = await behaviour(request, context)
                else:
                    count = self._counts.get(path)
                    if count is not None and peer_service(context) == self._service:
                        # What another replica passed on was counted there.
                        count = None
                    if count is not None and streams:
                        request = _counted(count, caller.context.account, request)
                    with self._under_way(path, caller, streams), acting_as(caller):
                        response = await behaviour(request, context)
                    if count is not None and not streams:
                        count(caller.context.account, request, response)
            except SealcombError as error:
                await self._refuse(path, context, error, request_id, started)
            except NotImplementedError:
                # What the generated servicers raise for a method that nobody overrode.
                await self._refuse(path, context, Unimplemented("no such method"), request_id, started)
            except grpc.aio.AbortError:
                raise
            except Exception:
                _log.exception("call failed", service=self._service, method=path, request_id=request_id)
                await self._refuse(path, context, internal_error(), request_id, started)
            else:
                telemetry.observe_call(self._service, path, "OK", time.perf_counter() - started)
                return response

        return _traced(path, call) if tracing.is_on() else call

    def _stream(self, path: str, behaviour: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            started = time.perf_counter()
            request_id = _request_id(context)
            telemetry.begin_request(request_id)
            try:
                caller = self._admit(path, context)
                with self._under_way(path, caller, streams=True):
                    responses = behaviour(checked(request), context)
                    while True:
                        # The caller is current only while the handler runs: a generator's own frames
                        # would otherwise leave it set in whatever context resumes them.
                        try:
                            if caller is None:
                                response = await anext(responses)
                            else:
                                with acting_as(caller):
                                    response = await anext(responses)
                        except StopAsyncIteration:
                            break
                        # A stream may last for longer than its peer's certificate.
                        self._check_certificate(context)
                        yield response
            except SealcombError as error:
                await self._refuse(path, context, error, request_id, started)
            except NotImplementedError:
                # What the generated servicers raise for a method that nobody overrode.
                await self._refuse(path, context, Unimplemented("no such method"), request_id, started)
            except grpc.aio.AbortError:
                raise
            except Exception:
                _log.exception("call failed", service=self._service, method=path, request_id=request_id)
                await self._refuse(path, context, internal_error(), request_id, started)
            else:
                telemetry.observe_call(self._service, path, "OK", time.perf_counter() - started)

        return _traced_stream(path, call) if tracing.is_on() else call

    @contextmanager
    def _under_way(self, path: str, caller: Caller | None, streams: bool) -> Iterator[None]:
        # Only the edge's own calls: those that a service makes for another are bounded by them.
        if caller is None or caller.context.method != path:
            yield
        elif streams and self._streams is not None:
            with self._calls.counted(caller.context), self._streams.watched(caller.context):
                yield
        else:
            with self._calls.counted(caller.context):
                yield

    def _admit(self, path: str, context: grpc.aio.ServicerContext[Any, Any]) -> Caller | None:
        """The verified caller, None where the rule wants no context; raises for a refusal."""
        rule = self._rules.get(path)
        if rule is None:
            raise PeerRefused("unlisted method")
        peer = peer_service(context)
        if peer not in rule.peers:
            raise PeerRefused(f"peer {peer or 'unknown'}")
        self._check_certificate(context)
        if not rule.needs_context:
            return None
        values = [value for key, value in context.invocation_metadata() or () if key == HEADER]
        if len(values) != 1 or not isinstance(values[0], str):
            raise ContextRefused("missing or repeated")
        verified = self._verifier.verify(values[0])
        check_context(rule, path, peer, verified)
        return Caller(verified, values[0])

    def _check_certificate(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if self._certificates is None:
            return
        presented = context.auth_context().get("x509_pem_cert", ())
        why = self._certificates.refusal(bytes(next(iter(presented), b"")))
        if why:
            raise PeerRefused(why)

    async def _refuse(
        self,
        path: str,
        context: grpc.aio.ServicerContext[Any, Any],
        error: SealcombError,
        request_id: str,
        started: float,
    ) -> None:
        telemetry.observe_call(self._service, path, error.kind.name, time.perf_counter() - started)
        if isinstance(error, PeerRefused | ContextRefused):
            self._alarms.note(peer_service(context), error.reason)
            _log.warning(
                "call refused",
                service=self._service,
                method=path,
                reason=error.reason,
                why=error.why,
                request_id=request_id,
            )
        await context.abort(grpc_code(error.kind), error.message, _told(error, request_id, context))

    async def _unknown(self, _request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")


def _traced(path: str, call: Any) -> Any:
    async def within(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with tracing.traced(path, _request_id(context), _metadata(context, tracing.TRACE_HEADER)):
            return await call(request, context)

    return within


def _traced_stream(path: str, call: Any) -> Any:
    async def within(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        with tracing.traced(path, _request_id(context), _metadata(context, tracing.TRACE_HEADER)):
            async for response in call(request, context):
                yield response

    return within


async def _counted(count: Count, account: str, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        count(account, request, None)
        yield request


def peer_service(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The service that the peer's certificate names, by exactly one SPIFFE id of ours; else empty."""
    ids = list(context.auth_context().get("peer_spiffe_id", ()))
    if len(ids) != 1:
        return ""
    text = ids[0].decode("ascii", "replace")
    return text.removeprefix(SPIFFE_PREFIX) if text.startswith(SPIFFE_PREFIX) else ""


def _told(
    error: SealcombError, request_id: str, context: grpc.aio.ServicerContext[Any, Any]
) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that tells the caller more than code and message."""
    if not any(key == PROBLEM_WANTED_HEADER for key, _ in context.invocation_metadata() or ()):
        return ((DETAILS_KEY, status_proto(error, request_id).SerializeToString()),)
    wait = retry_after(error)
    problem = (PROBLEM_HEADER, problem_json(error, request_id))
    return (problem,) if wait is None else (problem, ("retry-after", wait))


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    return _metadata(context, "x-request-id")


def _metadata(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value[:64]
    return ""
