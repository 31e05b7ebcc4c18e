"""The health that the edge shows: SERVING only while every service behind it says so.

Nothing else is told: not which service is missing, nor any name or version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.envoy.admin import AdminUnreachable

_log = structlog.get_logger("health")
_PERIOD_S = 1.0
_TIMEOUT_S = 1.0
_ASKED_MAX = 3


class HealthPoller:
    """Asks the services every second and passes on whether all of them serve."""

    def __init__(
        self,
        channels: Mapping[str, grpc.aio.Channel],
        set_ready: Callable[[bool], Awaitable[None]],
        healthy_replicas: Callable[[], Mapping[str, int]],
        note_replicas: Callable[[Mapping[str, int]], None] = lambda _healthy: None,
    ) -> None:
        self._stubs = {service: health_pb2_grpc.HealthStub(channel) for service, channel in channels.items()}
        self._set_ready = set_ready
        # Blocking: Envoy makes up its own mind about who is healthy, and its first calls would fail before.
        self._healthy_replicas = healthy_replicas
        self._note_replicas = note_replicas
        self._down: frozenset[str] | None = None

    async def run(self) -> None:
        """Polls until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(_PERIOD_S)

    async def poll(self) -> None:
        """Asks all services once."""
        answers = await asyncio.gather(*(self._serves(stub) for stub in self._stubs.values()))
        down = frozenset(service for service, serves in zip(self._stubs, answers, strict=True) if not serves)
        if not await self._edge_reaches_all() and not down:
            down = frozenset({"edge"})
        if down == self._down:
            return
        for service in sorted(down - (self._down or frozenset())):
            _log.warning("service is not serving", peer=service)
        self._down = down
        await self._set_ready(not down)

    async def _edge_reaches_all(self) -> bool:
        try:
            healthy = await asyncio.to_thread(self._healthy_replicas)
        except AdminUnreachable:
            return False
        self._note_replicas(healthy)
        return bool(healthy) and all(number > 0 for number in healthy.values())

    async def _serves(self, stub: health_pb2_grpc.HealthStub) -> bool:
        # Replicas take turns: one that is about to stop says so, and the next may serve.
        for _ in range(_ASKED_MAX):
            try:
                response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return False
                continue
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return True
        return False
