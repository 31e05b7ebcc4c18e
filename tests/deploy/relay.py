"""A port on loopback whose connections end inside a container, as `kubectl port-forward` makes one.

Each connection is the standard input and output of a command, such as `podman exec`; so nothing is
asked of the machine's own routes.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

# Runs in the container: joins standard input and output with a port there.
JOIN = """
import os, socket, sys, threading
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def up():
    while data := os.read(0, 65536): there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := there.recv(65536): os.write(1, data)
"""


@contextmanager
def relay(command: Sequence[str]) -> Iterator[int]:
    """A relay for the block, by a command that is run for each connection; gives its port."""
    with subprocess.Popen([sys.executable, __file__, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def _serve(command: Sequence[str]) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = asyncio.subprocess.PIPE
        joined = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert joined.stdin is not None
        assert joined.stdout is not None
        await asyncio.gather(_pump(reader, joined.stdin), _pump(joined.stdout, writer))
        await joined.wait()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
