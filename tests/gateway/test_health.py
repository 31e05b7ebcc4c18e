"""The gateway's readiness: a service serves while one of its replicas does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from services.gateway.health import HealthPoller

SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
STOPPING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
GONE = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
SILENT = grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())


class Replicas:
    """A channel whose replicas take turns in answering."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = answers
        self.asked = 0

    def unary_unary(self, *_args: Any, **_kwargs: Any) -> Callable[..., Any]:
        async def check(_request: Any, timeout: float) -> Any:
            assert timeout <= 1
            answer = self._answers[self.asked % len(self._answers)]
            self.asked += 1
            if isinstance(answer, Exception):
                raise answer
            return answer

        return check

    unary_stream = unary_unary


async def readiness(answers: Sequence[Any]) -> tuple[bool, int]:
    said: list[bool] = []
    replicas = Replicas(answers)

    async def set_ready(ready: bool) -> None:
        said.append(ready)

    channel: Any = replicas
    await HealthPoller({"keyvault": channel}, set_ready, lambda: {"keyvault": 1}).poll()
    return said[-1], replicas.asked


@pytest.mark.parametrize("answers", [[SERVING], [STOPPING, SERVING], [GONE, SERVING]])
async def test_a_replica_that_stops_makes_no_gateway_unready(answers: Sequence[Any]) -> None:
    """G8: else all gateways would leave their balancer at once whenever one replica is restarted."""
    assert (await readiness(answers))[0] is True


@pytest.mark.parametrize(("answers", "asked"), [([STOPPING], 3), ([GONE], 3), ([SILENT, SERVING], 1)])
async def test_a_service_without_a_replica_that_serves_does_not_serve(
    answers: Sequence[Any], asked: int
) -> None:
    """The twin; one that keeps silent has used up the time of a look."""
    assert await readiness(answers) == (False, asked)
