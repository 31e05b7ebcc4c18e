"""The private port: probes that tell the truth, metrics, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request

from services.common import ops
from services.common.ops import Heartbeat, serving_ops
from services.standalone.ports import free_ports


async def _get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def test_readiness_is_what_the_service_says() -> None:
    said = [False]
    with serving_ops("127.0.0.1", free_ports(1)[0], lambda: said[0]) as port:
        assert (await _get(port, "/readyz"))[0] == 503
        said[0] = True
        assert (await _get(port, "/readyz"))[0] == 200


async def test_a_service_that_is_not_ready_is_alive_all_the_same() -> None:
    with serving_ops("127.0.0.1", free_ports(1)[0], lambda: False) as port:
        assert (await _get(port, "/livez"))[0] == 200


def test_a_loop_that_stands_still_is_not_alive() -> None:
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    assert heartbeat.is_alive()
    now[0] += ops._STILL_S_MAX + 1
    assert not heartbeat.is_alive()


async def test_a_loop_that_turns_goes_on_being_alive() -> None:
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    now[0] += ops._STILL_S_MAX + 1
    beating = asyncio.create_task(heartbeat.beat())
    await asyncio.sleep(0)
    assert heartbeat.is_alive()
    beating.cancel()


async def test_metrics_are_there_and_nothing_else_is() -> None:
    """A16: an unknown path is not repeated, and no label can come from a caller."""
    with serving_ops("127.0.0.1", free_ports(1)[0], lambda: True) as port:
        status, text = await _get(port, "/metrics")
        assert status == 200
        assert "process_cpu_seconds_total" in text
        for path in ("/", "/canary", "/metrics/canary", "/readyz/", "/debug/pprof"):
            assert await _get(port, path) == (404, "not found\n")
        assert (await _get(port, "/metrics", "POST"))[0] == 404
        assert "canary" not in (await _get(port, "/metrics"))[1]


async def test_silent_connections_keep_nobody_out() -> None:
    with serving_ops("127.0.0.1", free_ports(1)[0], lambda: True) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        began = time.monotonic()
        assert (await _get(port, "/livez"))[0] == 200
        assert time.monotonic() - began < 4.0
        for connection in silent:
            connection.close()


async def test_no_port_is_no_server() -> None:
    with serving_ops("127.0.0.1", 0, lambda: True) as port:
        assert port == 0
