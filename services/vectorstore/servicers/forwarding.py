"""Passes a call on to the replica that holds its collection, so that any replica answers any call.

A call is passed on once: the replica that it reaches answers, or says that it is not the holder, and then
whoever passed it on asks the database again. What is known to have changed nothing is tried again until its
time is over: a collection that was closed, a place that was lost, a holder that cannot be reached. A call
that was sent and not answered is repeated only if it reads. The caller's own context goes with it, and the
holder checks that as if it had come from the edge.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf import descriptor_pool, message_factory
from prometheus_client import Counter

from sealcomb.v1 import vector_service_pb2 as pb
from services.common import methods
from services.common.clock import Clock
from services.common.context import current_account
from services.common.errors import NotFound, SealcombError, Unavailable
from services.common.rpc.channel import context_metadata
from services.common.rpc.interceptor import peer_service
from services.common.rpc.status import error_from_call
from services.vectorstore.catalog import Catalog, no_such_collection
from services.vectorstore.collection import CollectionClosed
from services.vectorstore.leases import HeldElsewhere, SharedLeases
from services.vectorstore.log import LostPlace
from services.vectorstore.store import LeasesLost

_log = structlog.get_logger("forwarding")
_forwards = Counter("sealcomb_forwards_total", "Calls passed on to the replica that holds them", ["outcome"])
_FORWARDED = "x-sealcomb-forwarded"
_NOT_HOLDER = "NOT_HOLDER"
_PEER_REFUSED = "PEER_REFUSED"
_PATIENCE_S = 15.0
_PAUSE_S = 0.05
_PAUSE_S_MAX = 0.5
_CONNECT_S = 1.0
_CHANNELS_MAX = 64
_STREAM_S = 3600.0
_UPSERT_STREAM = "/sealcomb.v1.VectorService/UpsertStream"
_READS = ("Get", "List", "Count", "Query", "Search", "Resolve")
_T = TypeVar("_T")
OpenPeer = Callable[[str], grpc.aio.Channel]


class _NotSent(Exception):
    """The holder is another by now, or cannot be reached: the call has changed nothing."""


class Forwarder(grpc.aio.ServerInterceptor):
    """Stands behind the guard: what comes here was admitted already."""

    def __init__(self, leases: SharedLeases, catalog: Catalog, open_peer: OpenPeer, clock: Clock) -> None:
        self._leases = leases
        self._catalog = catalog
        self._open_peer = open_peer
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Closes the channels to the others."""
        for channel in self._channels.values():
            await channel.close()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps calls of one request; UpsertStream passes its batches on itself."""
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or not path.startswith("/sealcomb."):
            return handler
        if handler.unary_stream is not None:
            return self._streaming(path, handler)
        if handler.unary_unary is None:
            return handler

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            def send(channel: grpc.aio.Channel, timeout_s: float) -> Awaitable[Any]:
                answer = _response_class(path)
                method = channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
                return method(request, timeout=timeout_s, metadata=_metadata())

            may_forward = not _was_forwarded(context)
            return await self._run(
                path, lambda: handler.unary_unary(request, context), send if may_forward else None
            )

        return grpc.unary_unary_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )

    def _streaming(self, path: str, handler: Any) -> Any:
        """The same for a stream of answers: until the first of them it may still be passed on."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async def here() -> tuple[Any, AsyncIterator[Any]]:
                answers = handler.unary_stream(request, context)
                return await anext(answers, None), answers

            async def send(channel: grpc.aio.Channel, _timeout_s: float) -> tuple[Any, AsyncIterator[Any]]:
                method: Any = channel.unary_stream(
                    path, type(request).SerializeToString, _response_class(path).FromString
                )
                left_s = context.time_remaining() or _STREAM_S
                answers = method(request, timeout=min(left_s, _STREAM_S), metadata=_metadata())
                # Cut where the edge's call ends first, so that the holder stops as well.
                context.add_done_callback(lambda *_context: answers.cancel())  # type: ignore[arg-type]
                rest = aiter(answers)
                return await anext(rest, None), rest

            may_forward = not _was_forwarded(context)
            first, rest = await self._run(path, here, send if may_forward else None)
            if first is None:
                return
            yield first
            try:
                async for answer in rest:
                    yield answer
            except grpc.aio.AioRpcError as error:
                raise error_from_call(error) from None

        return grpc.unary_stream_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )

    async def upsert_batch(
        self,
        message: pb.UpsertStreamRequest,
        attempt: Callable[[], Awaitable[pb.UpsertStreamResponse]],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.UpsertStreamResponse:
        """One batch of a stream, here or at the holder, which sees a stream of this batch alone."""

        async def one() -> AsyncIterator[pb.UpsertStreamRequest]:
            yield message

        def send(channel: grpc.aio.Channel, timeout_s: float) -> Awaitable[pb.UpsertStreamResponse]:
            method: Any = channel.stream_unary(
                _UPSERT_STREAM,
                pb.UpsertStreamRequest.SerializeToString,
                pb.UpsertStreamResponse.FromString,
            )
            call: Awaitable[pb.UpsertStreamResponse] = method(one(), timeout=timeout_s, metadata=_metadata())
            return call

        return await self._run(_UPSERT_STREAM, attempt, None if _was_forwarded(context) else send)

    async def _run(
        self,
        path: str,
        attempt: Callable[[], Awaitable[_T]],
        send: Callable[[grpc.aio.Channel, float], Awaitable[_T]] | None,
    ) -> _T:
        end_s = self._clock.monotonic_s() + _PATIENCE_S
        pause_s, looked_again = _PAUSE_S, False
        while True:
            try:
                return await attempt()
            except HeldElsewhere as held:
                if send is None:
                    raise Unavailable(
                        "the collection moved; try again", reason=_NOT_HOLDER, retry_after_s=0.1
                    ) from None
                try:
                    return await self._forward(path, held, send, end_s)
                except _NotSent:
                    self._leases.forget_where(held.collection)
                    failure: SealcombError = held
            except (CollectionClosed, LeasesLost, LostPlace) as error:
                failure = error
            except NotFound as error:
                # A name may have been given to another collection since it was looked up here.
                if looked_again or error.reason != no_such_collection().reason:
                    raise
                looked_again = True
                if not self._catalog.forget_account(current_account()):
                    raise
                continue
            if self._clock.monotonic_s() + pause_s >= end_s:
                raise failure
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _forward(
        self,
        path: str,
        held: HeldElsewhere,
        send: Callable[[grpc.aio.Channel, float], Awaitable[_T]],
        end_s: float,
    ) -> _T:
        channel = self._channel(held.elsewhere.address)
        try:
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
        except TimeoutError:
            _forwards.labels("unreachable").inc()
            raise _NotSent from None
        sent = asyncio.ensure_future(send(channel, max(0.1, end_s - self._clock.monotonic_s())))
        try:
            answer = await self._answer(sent, held)
        except grpc.aio.AioRpcError as error:
            failure = error_from_call(error)
            if failure.reason == _PEER_REFUSED:
                _log.error("the holder takes no calls of replicas; give each its SEALCOMB_REPLICA_ADDRESS")
                _forwards.labels("refused").inc()
                raise held from None
            if failure.reason == _NOT_HOLDER:
                _forwards.labels("moved").inc()
                raise _NotSent from None
            _forwards.labels("failed").inc()
            if failure.reason == "UNAVAILABLE" and _reads(path):
                raise _NotSent from None
            raise failure from None
        _forwards.labels("ok").inc()
        return answer

    async def _answer(self, sent: asyncio.Future[_T], held: HeldElsewhere) -> _T:
        """The answer, unless the collection gets another holder while it is waited for."""
        try:
            while True:
                done, _ = await asyncio.wait((sent,), timeout=self._leases.lease_s)
                if done:
                    return sent.result()
                if not await self._leases.is_held_by(held):
                    raise grpc.aio.AioRpcError(
                        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()
                    )
        finally:
            if not sent.done():
                sent.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await sent

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            if len(self._channels) >= _CHANNELS_MAX:
                # Replicas come and go under new addresses; what is under way ends as if its peer had gone.
                oldest = next(iter(self._channels))
                closing = asyncio.ensure_future(self._channels.pop(oldest).close(_PATIENCE_S))
                closing.add_done_callback(lambda done: done.exception())
            channel = self._channels[address] = self._open_peer(address)
        return channel


def _metadata() -> tuple[tuple[str, str], ...]:
    return (*context_metadata(), (_FORWARDED, "1"))


def _was_forwarded(context: grpc.aio.ServicerContext[Any, Any]) -> bool:
    said = any(key == _FORWARDED for key, _ in context.invocation_metadata() or ())
    return said and peer_service(context) == methods.VECTORSTORE


def _reads(path: str) -> bool:
    return path.rpartition("/")[2].startswith(_READS)


def _response_class(path: str) -> Any:
    service, _, method = path.strip("/").partition("/")
    found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
    return message_factory.GetMessageClass(found.output_type)
