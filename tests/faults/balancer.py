"""What stands in front of the gateways: passes new connections on to those that are ready, and nothing else.

As a Service of Kubernetes or a load balancer of a cloud does; connections that are there stay where they are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BLOCK_BYTES = 65536


class Balancer:
    """A port on loopback; `ready` has the ports that take new connections."""

    def __init__(self) -> None:
        self.port = 0
        self.ready: list[int] = []
        self._turn = 0

    async def serve(self, listening: threading.Event, stop: asyncio.Event) -> None:
        """Runs until it is told to stop."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        await stop.wait()
        server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = None
        with suppress(OSError):
            ready = list(self.ready)
            if ready:
                self._turn += 1
                there = await asyncio.open_connection("127.0.0.1", ready[self._turn % len(ready)])
                await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        for one in (writer, there[1] if there else None):
            if one is not None:
                one.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_BLOCK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def balancing() -> Iterator[Balancer]:
    """A balancer for the block, in a thread of its own."""
    balancer, listening = Balancer(), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        loop.run_until_complete(balancer.serve(listening, stop))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert listening.wait(30)
        yield balancer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
