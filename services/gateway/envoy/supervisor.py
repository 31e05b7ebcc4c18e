"""Runs Envoy as a child of the policy process: checked before it starts, started again when it dies.

Envoy never outlives the policy process, however that ends: the kernel kills it with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import structlog

from services.gateway.envoy.admin import AdminUnreachable, EnvoyAdmin
from services.gateway.envoy.config import bootstrap, secrets
from services.gateway.envoy.plan import EdgePlan
from services.gateway.files import private_folder, write_private

_log = structlog.get_logger("envoy")
_VALIDATE_S = 30.0
_STOP_S = 5.0
_DRAIN_POLL_S = 0.1
# Longer than Envoy leaves a connection open that it has told to go.
_QUIET_S = 6.0
_FIRST_DELAY_S, _LAST_DELAY_S = 0.1, 5.0
# A run of this length was a success, after which the next death is treated as a first one.
_STEADY_S = 10.0

# Runs in a fresh interpreter, since code between fork and exec is unsafe beside threads: asks for the
# parent's death to be ours, looks whether it died already, and becomes Envoy.
_LAUNCH = (
    "import ctypes, os, sys; "
    "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class EnvoyRefused(Exception):
    """Envoy does not take the configuration."""


def envoy_binary() -> Path:
    """The Envoy of the installed package. Raises FileNotFoundError."""
    spec = importlib.util.find_spec("envoy")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if path.is_file():
            return path
    raise FileNotFoundError("no Envoy is installed; install the extra `gateway`")


class EnvoySupervisor:
    """One Envoy, kept alive until `stop`."""

    def __init__(self, plan: EdgePlan, workers: int, binary: Path) -> None:
        self._plan = plan
        self._workers = workers
        self._binary = binary
        self._admin = EnvoyAdmin(plan.admin_socket)
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running Envoy's process id."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def prepare(self) -> None:
        """Writes the configuration and lets Envoy check it. Raises EnvoyRefused."""
        private_folder(self._plan.run_dir)
        for name, content in secrets(self._plan).items():
            write_private(self._plan.run_dir / name, json.dumps(content).encode())
        write_private(self._config, json.dumps(bootstrap(self._plan), indent=1).encode())
        checker = await asyncio.create_subprocess_exec(
            str(self._binary),
            "--mode",
            "validate",
            *self._arguments,
            stdout=asyncio.subprocess.DEVNULL,
            env={},
        )
        try:
            code = await asyncio.wait_for(checker.wait(), _VALIDATE_S)
        except TimeoutError:
            checker.kill()
            raise EnvoyRefused("Envoy did not check its configuration in time") from None
        if code != 0:
            raise EnvoyRefused("Envoy refused its configuration; its own message is above")

    def start(self) -> None:
        """Starts Envoy, and again whenever it dies."""
        self._task = asyncio.create_task(self._keep_alive())

    async def drain(self, within_s: float, hurry: asyncio.Event, *, others: bool = False) -> None:
        """Takes no new connection and waits for the calls in flight: so long, or until the event is set.

        Where there are `others` that clients can go to, it also waits for connections to end: a client learns
        with its next answer that it is to go, and one whose call met the end would see it fail.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + within_s
        begun, quiet_since_s = -1, loop.time()
        try:
            await asyncio.to_thread(self._admin.stop_listening)
            while not hurry.is_set() and loop.time() < end_s:
                if not await asyncio.to_thread(self._admin.active_calls):
                    if not others:
                        return
                    connections, now_begun = await asyncio.to_thread(self._admin.connections)
                    if now_begun != begun:
                        begun, quiet_since_s = now_begun, loop.time()
                    # Who has not called for so long may stay connected for ever.
                    if not connections or loop.time() - quiet_since_s > _QUIET_S:
                        return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(hurry.wait(), _DRAIN_POLL_S)
        except AdminUnreachable:
            _log.warning("envoy could not be drained")
            return
        _log.warning("calls in flight are cut")

    async def stop(self) -> None:
        """Ends Envoy and waits for it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _keep_alive(self) -> None:
        delay_s = _FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                "-c",
                _LAUNCH,
                str(os.getpid()),
                str(self._binary),
                *self._arguments,
                env={},
            )
            _log.info("envoy started", pid=self._process.pid)
            code = await self._process.wait()
            if loop.time() - started_s > _STEADY_S:
                delay_s = _FIRST_DELAY_S
            _log.error("envoy ended and is started again", exit_code=code)
            await asyncio.sleep(delay_s)
            delay_s = min(_LAST_DELAY_S, 2 * delay_s)

    @property
    def _config(self) -> Path:
        return self._plan.run_dir / "envoy.json"

    @property
    def _arguments(self) -> tuple[str, ...]:
        # Above "error" Envoy's log would show headers, tokens among them.
        return (
            "-c", str(self._config), "--disable-hot-restart",
            "--concurrency", str(self._workers), "--log-level", "error",
            "--file-flush-interval-msec", "1000",
        )  # fmt: skip
