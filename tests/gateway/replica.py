"""A small service as a process of its own, of which tests start several and end some.

It answers every public method of one service with its own name, behind the real server and guard;
`--work-ms` and `--slots` make it one that has a capacity. A body that begins with `s` and a number
is worked on for so many milliseconds.

    python -m tests.gateway.replica SERVICE PORT NAME KEYS_DIR [--work-ms 10 --slots 1]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from services.common.clock import SystemClock
from services.common.context import ContextVerifier
from services.common.methods import PUBLIC_METHODS
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.tls import TlsFiles
from services.standalone.pki import Installation, ensure_installation
from tests.gateway.rig import ROOT, free_port

_SLEEP = re.compile(rb"s(\d{1,5})")


class Named(grpc.GenericRpcHandler):
    """Answers with its name."""

    def __init__(self, name: str, work_s: float, slots: int) -> None:
        self._name = name.encode()
        self._work_s = work_s
        self._slots = asyncio.Semaphore(slots) if slots else None

    def service(self, details: Any) -> Any:
        if details.method not in PUBLIC_METHODS:
            return None

        async def behaviour(body: bytes, _context: Any) -> bytes:
            sleep = _SLEEP.match(body)
            if sleep:
                await asyncio.sleep(int(sleep[1]) / 1000)
            if self._slots is not None:
                async with self._slots:
                    await asyncio.sleep(self._work_s)
            return self._name

        # A unary answer leaves in one piece, as the services' own do: one that a kill cuts in two could
        # not be asked for again by anybody but the client.
        return grpc.unary_unary_rpc_method_handler(behaviour)


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM, then drains."""
    installation = ensure_installation(Path(arguments.keys))
    service = arguments.service
    verifier = ContextVerifier.from_folder(service, installation.context_trust_dir, SystemClock())
    guard = GuardInterceptor(service, rules_for(service), verifier)
    tls = TlsFiles(installation.tls_dir(service))
    server = InnerServer(f"{arguments.host}:{arguments.port}", tls, guard)
    named = Named(arguments.name, arguments.work_ms / 1000, arguments.slots)
    server.grpc_server.add_generic_rpc_handlers((named,))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await server.set_ready(True)
    await stop.wait()
    await server.stop(notice_s=arguments.notice_s)


class Replica:
    """One of them, as a test sees it."""

    def __init__(
        self, installation: Installation, service: str, name: str, *options: str, port: int = 0
    ) -> None:
        self.name = name.encode()
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "tests.gateway.replica", service, str(self.port), name,
            str(installation.keys_dir), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it."""
        self._process = subprocess.Popen(self._command, cwd=ROOT)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it: by its own drain, or at once with SIGKILL."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


@contextmanager
def replicas(
    installation: Installation, service: str, *names: str, options: tuple[str, ...] = ()
) -> Iterator[list[Replica]]:
    """Running replicas of one service."""
    own = [Replica(installation, service, name, *options) for name in names]
    try:
        for one in own:
            one.start()
        yield own
    finally:
        for one in own:
            one.stop(signal.SIGKILL)


def main() -> None:
    """As a process."""
    parser = argparse.ArgumentParser()
    for name in ("service", "port", "name", "keys"):
        parser.add_argument(name)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--work-ms", type=float, default=0)
    parser.add_argument("--notice-s", type=float, default=2.5)
    parser.add_argument("--slots", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
