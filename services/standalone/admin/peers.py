"""Whether the services say that they serve, asked as the gateway asks them."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc.channel import open_channel
from services.common.tls import TlsFiles

_DEADLINE_S = 3.0
SERVING, NOT_SERVING, SILENT, UNKNOWN = "serving", "not serving", "no answer", "unknown"


async def states(addresses: dict[str, str], tls: TlsFiles) -> dict[str, str]:
    """What each service says of itself at its address."""
    found = await asyncio.gather(*(_state(address, name, tls) for name, address in addresses.items()))
    return dict(zip(addresses, found, strict=True))


async def _state(address: str, service: str, tls: TlsFiles) -> str:
    if address.endswith(":0"):
        return SILENT
    try:
        channel = open_channel(address, service, tls)
    except (OSError, ValueError):
        # Without the gateway's certificate nobody inside says anything.
        return UNKNOWN
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_S)
        return SERVING if answer.status == health_pb2.HealthCheckResponse.SERVING else NOT_SERVING
    except grpc.RpcError:
        return SILENT
    finally:
        await channel.close()
