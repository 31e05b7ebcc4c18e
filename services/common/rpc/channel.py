"""Channels to other services: mutual TLS, the current call's context passed on, a deadline always."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from services.common import tracing
from services.common.clock import SystemClock
from services.common.context import HEADER, ContextRefused, current_caller
from services.common.rpc.credentials import channel_credentials
from services.common.rpc.renewed import RenewedChannel
from services.common.rpc.server import MESSAGE_BYTES_MAX
from services.common.rpc.status import error_from_call
from services.common.telemetry import current_request_id
from services.common.tls import TlsFiles, TlsMaterial, host_of

_DEADLINE_S = 15.0
_Response = TypeVar("_Response")


def open_channel(address: str, service: str, tls: TlsFiles) -> grpc.aio.Channel:
    """A channel to a service, whose certificate must name it.

    `address` may be several replicas' IP addresses, separated by commas, or a name that stands for
    several; calls then take turns among those that can be reached. Renewed TLS files are followed.
    """
    target = target_of(address)

    def make(material: TlsMaterial) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, channel_credentials(material), options=_options(service))

    return RenewedChannel(make, tls, SystemClock().monotonic_s)


def _options(service: str) -> tuple[tuple[str, str | int], ...]:
    return (
        # The certificate names the service, not the address that finds it.
        ("grpc.ssl_target_name_override", host_of(service)),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # What one attempt may take, the handshake of a busy peer with it; not the pause before the next.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.enable_retries", 0),
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    )


def target_of(address: str) -> str:
    """The address as gRPC wants it. Raises ValueError where names are mixed into a list."""
    addresses = [one.strip() for one in address.split(",")]
    if len(addresses) == 1:
        return addresses[0]
    versions = {ipaddress.ip_address(one.rsplit(":", 1)[0].strip("[]")).version for one in addresses}
    if len(versions) > 1:
        raise ValueError("replicas must be listed by addresses of one family")
    return f"ipv{versions.pop()}:{','.join(addresses)}"


async def connected(*channels: grpc.aio.Channel, unless: asyncio.Event) -> None:
    """Returns when every channel has reached its service, or when the event is set.

    A service that says it is ready before that fails its first calls: a channel that was refused
    while its peer started does not try again at once.
    """
    waits = [asyncio.ensure_future(channel.channel_ready()) for channel in channels]
    stop = asyncio.ensure_future(unless.wait())
    everyone = asyncio.ensure_future(asyncio.wait(waits))
    try:
        await asyncio.wait((everyone, stop), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*waits, stop, everyone):
            task.cancel()


async def call(
    method: Callable[..., Awaitable[_Response]], request: Any, *, timeout_s: float = _DEADLINE_S
) -> _Response:
    """Calls a unary stub method under the current caller's context; raises SealcombError for any failure."""
    try:
        return await method(request, timeout=timeout_s, metadata=context_metadata())
    except grpc.aio.AioRpcError as error:
        raise error_from_call(error) from None


def context_metadata() -> tuple[tuple[str, str], ...]:
    """The metadata that passes the current caller on; empty outside a call."""
    try:
        caller = current_caller()
    except ContextRefused:
        return ()
    # The edge's id of this call; a job has none, and is known by its permit's.
    request_id = current_request_id() or caller.context.request_id
    return ((HEADER, caller.text), ("x-request-id", request_id), *tracing.outgoing())
