"""Keeps the services running: starts them, restarts what dies, and in the end stops every process.

A process started here can neither outlive this one (the kernel sees to it, see child.py) nor
leave anything behind: orphans of a service that died are adopted by this process and ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.clock import Clock
from services.standalone.logs import LogFile

_PR_SET_CHILD_SUBREAPER = 36
_READ_BYTES = 64 * 1024
_READS_MAX = 16
# The edge lets calls in flight end first, which takes up to 25 s.
_STOP_GRACE_S = 40.0
# A service that lived this long starts afresh: its next death is the first again.
_SETTLED_S = 5.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 5.0
_DEATHS_MAX = 6


@dataclass(frozen=True, slots=True)
class Service:
    """One service to run: a Python module, its whole environment, its log file."""

    name: str
    module: str
    environment: Mapping[str, str]
    log: Path


class KeepsDying(Exception):
    """A service died again and again right after its start."""

    def __init__(self, service: str, exit_code: int, log: Path) -> None:
        super().__init__(f"{service} keeps dying (exit code {exit_code}); see the end of {log}")


class Supervisor:
    """Runs services until `stop`."""

    def __init__(
        self,
        services: Sequence[Service],
        clock: Clock,
        *,
        say: Callable[[str], None],
        inherited_descriptors: Sequence[int] = (),
    ) -> None:
        self._services = list(services)
        self._clock = clock
        self._say = say
        self._descriptors = tuple(inherited_descriptors)
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None
        self._strangers: set[int] = set()

    def start(self) -> None:
        """Starts all services; call within the event loop of the main thread."""
        adopt_orphans()
        # Children that this process had before are not ours to collect or to end.
        self._strangers = child_pids()
        self._failed = asyncio.get_running_loop().create_future()
        for service in self._services:
            self._tasks[service.name] = asyncio.create_task(self._keep_running(service))

    async def failed(self) -> None:
        """Waits until some service keeps dying, then raises KeepsDying."""
        assert self._failed is not None, "not started"  # noqa: S101
        await asyncio.shield(self._failed)

    def pid(self, name: str) -> int:
        """The process id of a service; 0 while it does not run."""
        process = self._processes.get(name)
        return process.pid if process is not None else 0

    async def stop(self, grace_s: float = _STOP_GRACE_S) -> None:
        """Stops the services one after the other in the opposite order of starting, then whatever is left."""
        self._stopping.set()
        for service in reversed(self._services):
            process = self._processes.get(service.name)
            if process is not None:
                _signal(process, signal.SIGTERM)
            task = self._tasks.get(service.name)
            if task is None:
                continue
            if process is None:
                # Between two lives: nothing to wait for.
                task.cancel()
            _done, late = await asyncio.wait([task], timeout=grace_s)
            if late and process is not None:
                self._say(f"{service.name} did not stop in time and was killed")
                _signal(process, signal.SIGKILL)
                await asyncio.wait([task], timeout=grace_s)
        await _end_orphans(self._strangers)

    def kill(self) -> None:
        """Kills all services at once, for the impatient."""
        self._stopping.set()
        for process in self._processes.values():
            _signal(process, signal.SIGKILL)

    async def _keep_running(self, service: Service) -> None:
        log = LogFile(service.log)
        deaths, backoff_s = 0, _BACKOFF_FIRST_S
        try:
            while not self._stopping.is_set():
                started_s = self._clock.monotonic_s()
                exit_code = await self._run_once(service, log)
                reap_orphans(self._pids() | self._strangers)
                if self._stopping.is_set():
                    return
                if self._clock.monotonic_s() - started_s >= _SETTLED_S:
                    deaths, backoff_s = 0, _BACKOFF_FIRST_S
                deaths += 1
                self._say(f"{service.name} ended with exit code {exit_code}; starting it again")
                if deaths >= _DEATHS_MAX and self._failed is not None and not self._failed.done():
                    self._failed.set_exception(KeepsDying(service.name, exit_code, service.log))
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)
        finally:
            log.close()

    async def _run_once(self, service: Service, log: LogFile) -> int:
        # A pipe of our own: asyncio's would keep `wait` waiting for every grandchild that holds its end.
        output, output_end = os.pipe()
        os.set_blocking(output, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(output, _copy_output, output, log)
        try:
            try:
                process = await self._spawn(service, output_end)
            finally:
                os.close(output_end)
            self._processes[service.name] = process
            if self._stopping.is_set():
                _signal(process, signal.SIGTERM)
            try:
                return await process.wait()
            finally:
                del self._processes[service.name]
        finally:
            loop.remove_reader(output)
            _copy_output(output, log)
            os.close(output)

    async def _spawn(self, service: Service, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "services.standalone.child",
            str(os.getpid()),
            service.module,
            env=dict(service.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=self._descriptors,
            # Ctrl-C in a terminal reaches this process alone, which then stops the others in order.
            process_group=0,
        )

    def _pids(self) -> set[int]:
        return {process.pid for process in self._processes.values()}


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants' orphans."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def child_pids() -> set[int]:
    """The process ids of this process's children, ended but unreaped ones included."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            pids.update(int(pid) for pid in (task / "children").read_text().split())
    return pids


def reap_orphans(own: set[int]) -> set[int]:
    """Collects the ended among the adopted children; returns those that still run."""
    running = set()
    for pid in child_pids() - own:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                running.add(pid)
    return running


async def _end_orphans(strangers: set[int]) -> None:
    for _ in range(50):
        running = reap_orphans(strangers)
        if not running:
            return
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)


def _copy_output(output: int, log: LogFile) -> None:
    # Bounded, so that one talkative service cannot hold up the loop.
    for _ in range(_READS_MAX):
        try:
            data = os.read(output, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            # Every writer has closed it; the loop must not be told so again and again.
            asyncio.get_running_loop().remove_reader(output)
            return
        log.write(data)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
