"""A service's inner gRPC server: mutual TLS, the guard interceptor, explicit limits, clean stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import Gauge

from services.common.clock import Clock, SystemClock
from services.common.rpc.credentials import server_credentials
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.peer_certificates import REFUSED_FILE, PeerCertificates
from services.common.tls import TlsFiles, expiry_s

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    # Old connections keep old certificates, so none lives much longer than a certificate's renewal.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.keepalive_time_ms", 60_000),
    # Envoy and our own channels ask an idle connection whether it still is one. By itself gRPC takes three
    # such pings for an attack and ends the connection, with the calls that are just then on it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)

_expiry = Gauge(
    "sealcomb_certificate_expiry_seconds",
    "When the service's own certificate file expires, in seconds since the Unix epoch",
)


class InnerServer:
    """One service's server. Register servicers on `grpc_server`, then `start`; `stop` drains."""

    def __init__(
        self,
        listen: str,
        tls: TlsFiles,
        guard: GuardInterceptor,
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        received_bytes_max: int | None = None,
        clock: Clock | None = None,
        behind_guard: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        # The file's, at each scrape: what a renewal puts there is taken within seconds.
        _expiry.set_function(lambda: expiry_s(tls.folder / "cert.pem"))
        guard.watch_certificates(PeerCertificates(tls.folder / REFUSED_FILE, clock or SystemClock()))
        options = (
            *_OPTIONS,
            # What a peer sends is in memory before anything looks at it: it may have its own bound.
            ("grpc.max_receive_message_length", received_bytes_max or message_bytes_max),
            ("grpc.max_send_message_length", message_bytes_max),
        )
        self.grpc_server = grpc.aio.server(
            interceptors=[guard, *behind_guard], options=options, maximum_concurrent_rpcs=1000
        )
        self._health = health.aio.HealthServicer()
        self.is_ready = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        self.port = self.grpc_server.add_secure_port(listen, server_credentials(tls))

    async def start(self) -> None:
        """Listens; health answers NOT_SERVING until `set_ready`."""
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.grpc_server.start()

    async def set_ready(self, ready: bool) -> None:
        """Tells health checks whether to send calls here."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        self.is_ready = ready
        await self._health.set("", state)

    async def set_part(self, part: str, serves: bool) -> None:
        """Tells whoever asks health for a part by its name; the whole is `set_ready`'s."""
        statuses = health_pb2.HealthCheckResponse
        await self._health.set(part, statuses.SERVING if serves else statuses.NOT_SERVING)

    async def stop(self, grace_s: float = 10.0, *, notice_s: float = 0.0) -> None:
        """Says NOT_SERVING, still answers until balancers have seen it, then waits for running calls.

        Without that notice a call that arrives in the instant of the stop ends CANCELLED.
        """
        self.is_ready = False
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(notice_s)
        await self.grpc_server.stop(grace_s)
