"""Channels to other services: what `connected` waits for."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from services.common.rpc.channel import connected, open_channel
from services.common.tls import TlsFiles
from services.standalone.ports import free_ports
from tests.certificates import TestCa


async def _server(port: int, tls: TlsFiles) -> grpc.aio.Server:
    material = tls.read()
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(material.key, material.certificate)])
    assert server.add_secure_port(f"127.0.0.1:{port}", credentials) == port
    await server.start()
    return server


async def test_a_service_waits_for_peers_that_start_after_it(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    files = TestCa.make().service_files(tmp_path, "keyvault")
    channel = open_channel(f"127.0.0.1:{port}", "keyvault", files)
    waiting = asyncio.create_task(connected(channel, unless=asyncio.Event()))
    await asyncio.sleep(0.3)  # refused by now, once at least
    assert not waiting.done()
    server = await _server(port, files)
    await asyncio.wait_for(waiting, 5.0)
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    await channel.close()
    await server.stop(None)


async def test_a_service_that_is_told_to_stop_does_not_wait_for_its_peers(tmp_path: Path) -> None:
    files = TestCa.make().service_files(tmp_path, "keyvault")
    channel = open_channel(f"127.0.0.1:{free_ports(1)[0]}", "keyvault", files)
    stopping = asyncio.Event()
    waiting = asyncio.create_task(connected(channel, unless=stopping))
    await asyncio.sleep(0.1)
    stopping.set()
    await asyncio.wait_for(waiting, 2.0)
    await channel.close()


async def test_a_peer_that_is_slow_to_shake_hands_is_reached_all_the_same(tmp_path: Path) -> None:
    """A busy machine takes its time; a connection that is given up each time is never made."""
    files = TestCa.make().service_files(tmp_path, "keyvault")
    behind, before = free_ports(2)
    server = await _server(behind, files)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                writer.write(part)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    carried: list[asyncio.Task[Any] | None] = []

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried.append(asyncio.current_task())
        await asyncio.sleep(1.0)
        there, back = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    proxy = await asyncio.start_server(late, "127.0.0.1", before)
    channel = open_channel(f"127.0.0.1:{before}", "keyvault", files)
    await asyncio.wait_for(connected(channel, unless=asyncio.Event()), 10.0)
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    await channel.close()
    await server.stop(None)
    proxy.close()
    await proxy.wait_closed()
    # Both ends are closed: what carried between them ends, and leaves no socket to whoever comes next.
    await asyncio.wait_for(asyncio.gather(*filter(None, carried)), 10.0)
