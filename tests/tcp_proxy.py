"""A TCP proxy that a test can freeze, cut or give TLS: a network that fails in the ways that networks do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TcpProxy:
    """Passes connections on to a port of loopback; `port` is its own."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        # Bytes that went through, either way.
        self.carried = 0
        self._target = target
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._started = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listens."""
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        """Ends every connection and stops listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def freeze(self) -> None:
        """From now on nothing arrives, though connections stay and new ones are taken."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def cut(self) -> None:
        """Ends every connection; new ones are taken."""
        self._loop.call_soon_threadsafe(self._cut)

    def thaw(self) -> None:
        """Everything arrives, what was held back too."""
        self._loop.call_soon_threadsafe(self._open.set)

    def _cut(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open.set()
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        )
        self.port = int(server.sockets[0].getsockname()[1])
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # Transports close in a later round of the loop.
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.suppress(OSError, asyncio.CancelledError, ssl.SSLError),
            contextlib.ExitStack() as ends,
        ):
            ends.callback(writer.transport.abort)
            await self._open.wait()
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ends.callback(other_writer.transport.abort)
            self._transports.add(writer.transport)
            ends.callback(self._transports.discard, writer.transport)
            copies = (self._copy(reader, other_writer), self._copy(other_reader, writer))
            async with asyncio.TaskGroup() as group:
                for copy in copies:
                    group.create_task(copy)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                await self._open.wait()
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextmanager
def running_proxy(target: int, tls: ssl.SSLContext | None = None) -> Iterator[TcpProxy]:
    """A proxy to a port of loopback."""
    proxy = TcpProxy(target, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
