"""The supervisor with real processes: it restarts what dies and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.standalone.supervisor import KeepsDying, Service, Supervisor

ROOT = Path(__file__).resolve().parents[2]
PYTHON_PATH = os.pathsep.join(str(ROOT / part) for part in (".", "protos", "client"))


def service(name: str, behaviour: str, folder: Path) -> Service:
    environment = {"BEHAVIOUR": behaviour, "PYTHONPATH": PYTHON_PATH, "PATH": os.environ["PATH"]}
    return Service(name, "tests.standalone.fake_service", environment, folder / f"{name}.log")


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_in(log: Path, word: str) -> list[int]:
    if not log.exists():
        return []
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(word)]


@contextlib.asynccontextmanager
async def running(*services: Service, said: list[str] | None = None) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(services, SystemClock(), say=(said if said is not None else []).append)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop(grace_s=2.0)


async def test_a_killed_service_is_started_again_and_said_so(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(service("one", "serve", tmp_path), said=said) as supervisor:
        await until(lambda: len(pids_in(tmp_path / "one.log", "started")) == 1)
        os.kill(supervisor.pid("one"), signal.SIGKILL)
        await until(lambda: len(pids_in(tmp_path / "one.log", "started")) == 2)
    assert said == ["one ended with exit code -9; starting it again"]


async def test_stopping_ends_every_process_also_one_that_will_not_stop(tmp_path: Path) -> None:
    said: list[str] = []
    services = (service("willing", "serve", tmp_path), service("stubborn", "stubborn", tmp_path))
    logs = [tmp_path / "willing.log", tmp_path / "stubborn.log"]
    async with running(*services, said=said):
        await until(lambda: all(pids_in(log, "started") for log in logs))
        # The signal handler is set after the line is printed.
        await asyncio.sleep(0.3)
    assert not any(alive(pids_in(log, "started")[0]) for log in logs)
    assert said == ["stubborn did not stop in time and was killed"]


async def test_orphans_of_a_service_are_adopted_and_ended(tmp_path: Path) -> None:
    async with running(service("parent", "orphan", tmp_path)) as supervisor:
        await until(lambda: pids_in(tmp_path / "parent.log", "grandchild"))
        orphan = pids_in(tmp_path / "parent.log", "grandchild")[0]
        os.kill(supervisor.pid("parent"), signal.SIGKILL)
        await until(lambda: len(pids_in(tmp_path / "parent.log", "grandchild")) == 2)
        assert alive(orphan)
    assert not any(alive(pid) for pid in pids_in(tmp_path / "parent.log", "grandchild"))


async def test_a_service_that_keeps_dying_is_reported_with_its_log(tmp_path: Path) -> None:
    async with running(service("weak", "die", tmp_path)) as supervisor:
        with pytest.raises(KeepsDying, match=r"weak keeps dying \(exit code 3\).*weak\.log"):
            await asyncio.wait_for(supervisor.failed(), 20)


async def test_services_die_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from services.common.clock import SystemClock
from services.standalone.supervisor import Service, Supervisor
async def main():
    environment = {service("one", "serve", tmp_path).environment!r}
    log = Path({str(tmp_path / "one.log")!r})
    one = Service("one", "tests.standalone.fake_service", environment, log)
    Supervisor([one], SystemClock(), say=print).start()
    await asyncio.sleep(60)
asyncio.run(main())
"""
    supervisor = subprocess.Popen(  # noqa: ASYNC220  (starts at once)
        [sys.executable, "-c", program], env={"PYTHONPATH": PYTHON_PATH, "PATH": os.environ["PATH"]}
    )
    try:
        await until(lambda: pids_in(tmp_path / "one.log", "started"))
        pid = pids_in(tmp_path / "one.log", "started")[0]
        assert alive(pid)
    finally:
        supervisor.kill()
        supervisor.wait()
    await until(lambda: not alive(pid))


async def test_children_of_others_are_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # noqa: ASYNC220
    try:
        async with running(service("one", "serve", tmp_path)):
            await until(lambda: pids_in(tmp_path / "one.log", "started"))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
