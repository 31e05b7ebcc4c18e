"""Connections to checked addresses alone.

httpcore asks this backend for every connection it opens. The name is resolved here, once, every
address of the answer is checked, and one of those very addresses is connected to, so there is no
second look-up that could answer otherwise. TLS keeps the name for SNI and for the certificate.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import certifi
import httpcore

from services.ingest.egress.addresses import Reach, reach_of
from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.resolver import Resolver
from services.ingest.egress.target import HostRules, packed_literal

# A few of many addresses: a host that answers on none of them is down.
_ATTEMPTS_MAX = 3


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to hosts whose addresses may be reached."""

    def __init__(
        self,
        rules: HostRules,
        resolver: Resolver,
        *,
        backend: httpcore.AsyncNetworkBackend | None = None,
        resolve_timeout_s: float = 5.0,
    ) -> None:
        self._rules = rules
        self._resolver = resolver
        self._backend = backend or httpcore.AnyIOBackend()
        self._resolve_timeout_s = resolve_timeout_s

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to one of the host's checked addresses. EgressRefused when any of them is not allowed."""
        addresses = await self.checked_addresses(host, port)
        failure: Exception = httpcore.ConnectError("the host has no address")
        for packed in addresses[:_ATTEMPTS_MAX]:
            try:
                return _Closing(
                    await self._backend.connect_tcp(
                        _literal(packed), port, timeout=timeout, socket_options=socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refused: nothing on this machine is outside."""
        raise EgressRefused("requests do not go to sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        """Sleeps."""
        await self._backend.sleep(seconds)

    async def checked_addresses(self, host: str, port: int) -> Sequence[bytes]:
        """The host's addresses, all of which may be reached."""
        literal = packed_literal(host)
        if literal is not None:
            addresses: Sequence[bytes] = (literal,)
        else:
            try:
                async with asyncio.timeout(self._resolve_timeout_s):
                    addresses = await self._resolver.resolve(host)
            except (OSError, TimeoutError) as error:
                raise httpcore.ConnectError("the host was not found") from error
        reachable = (Reach.PUBLIC, *((Reach.PRIVATE,) if self._rules.allows_private(host, port) else ()))
        # One bad address condemns the answer: whoever mixes them wants the second try to be the bad one.
        if not all(reach_of(packed) in reachable for packed in addresses):
            raise EgressRefused(f"{host} leads to an address that requests may not go to")
        return addresses


class _Closing(httpcore.AsyncNetworkStream):
    """A connection that is closed whatever ends its TLS handshake.

    httpcore does so for errors, not for a cancellation: a job that is cancelled, or a call whose time is up,
    would leave a socket behind that a peer who says nothing keeps open for ever.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The connection under TLS."""
        secured = None
        try:
            secured = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        finally:
            if secured is None:
                await self._stream.aclose()
        return secured

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes."""
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of the bytes."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Closes it."""
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """What the connection knows of itself."""
        return self._stream.get_extra_info(info)


def open_tls(ca_file: str | None = None) -> ssl.SSLContext:
    """TLS 1.2 and newer against the public certificate authorities, and the operator's own one if named.

    Made here rather than by `ssl.create_default_context`, which lets the environment have session
    keys written to a file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _literal(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
