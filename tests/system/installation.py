"""A whole installation for tests: every service and Envoy as processes of their own, on free ports."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sealcomb_client import Client, Connection
from services.standalone.ports import free_ports

SERVICES = ("keyvault", "vectorstore", "ingest", "gateway")
_READY_WITHIN_S = 90.0
_STOP_WITHIN_S = 60.0
# Tests call more often than a person; those about limits set an account's own.
_GENEROUS = {"SEALCOMB_CALLS_PER_SECOND": "5000", "SEALCOMB_BURST": "10000"}


@dataclass
class Account:
    """An account of a test: its id, its admin token, a client."""

    id: str
    client: Client
    connection: Connection


@dataclass
class Installation:
    """A running installation."""

    folder: Path
    edge_port: int
    http_port: int
    process: subprocess.Popen[bytes]
    clients: list[Client] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def keys(self) -> Path:
        """The keys folder."""
        return self.folder / "data.keys"

    @property
    def output(self) -> str:
        """What it printed so far."""
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def env_file(self) -> Path:
        """The file that tells clients how to reach it."""
        return self.data / "client.env"

    @property
    def connection(self) -> Connection:
        """The connection of the operator, and of the demo account if there is one."""
        return Connection.from_env(self.env_file, environ={})

    def client(self, connection: Connection | None = None) -> Client:
        """A client, closed with the installation."""
        client = Client(connection or self.connection)
        self.clients.append(client)
        return client

    def new_account(self, name: str = "") -> Account:
        """A fresh account with its first token."""
        made = self.client().accounts.create(name or f"account {secrets.token_hex(4)}")
        connection = replace(self.connection, token=made.token)
        return Account(made.account.id, self.client(connection), connection)

    def pids(self) -> list[int]:
        """Every process of the installation, the supervisor first."""
        return descendants(self.process.pid)

    def pid_of(self, service: str) -> int:
        """The process of a service; 0 while there is none."""
        for pid in self.pids()[1:]:
            if command_line(pid)[-1:] == [f"services.{service}.main"]:
                return pid
        return 0

    def wait_serving(self, within_s: float = 30.0) -> None:
        """Waits until the edge says that all serve."""
        end = time.monotonic() + within_s
        with Client(self.connection) as client:
            while not client.health(timeout_s=1.0):
                assert time.monotonic() < end, self.output
                time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops it as a user does; returns the exit code."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_WITHIN_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


def start(
    folder: Path, *, demo: bool = False, environ: Mapping[str, str] | None = None, launcher: str = ""
) -> Installation:
    """Starts an installation whose state, home and temporary files are below the folder.

    With a launcher, a script, that is run in the place of the program.
    """
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    port, http_port = free_ports(2)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "SEALCOMB_DATA_DIR": str(folder / "data"),
        "SEALCOMB_EDGE_PORT": str(port),
        "SEALCOMB_EDGE_HTTP_PORT": str(http_port),
        **_GENEROUS,
        **(environ or {}),
    }
    if "OPENBLAS_CORETYPE" in os.environ:
        environment["OPENBLAS_CORETYPE"] = os.environ["OPENBLAS_CORETYPE"]
    command = [str(Path(sys.executable).with_name("sealcomb-standalone"))]
    if launcher:
        command = [sys.executable, "-c", launcher]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if not demo:
        command.append("--no-demo")
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    installation = Installation(folder, port, http_port, process)
    end = time.monotonic() + _READY_WITHIN_S
    while "ready at" not in installation.output:
        if process.poll() is not None or time.monotonic() > end:
            logs = "".join(path.read_text()[-2000:] for path in (folder / "data" / "logs").glob("*.log"))
            installation.stop()
            raise AssertionError(f"did not start: {installation.output}\n{logs}")
        time.sleep(0.05)
    return installation


@contextmanager
def running(
    folder: Path, *, demo: bool = False, environ: Mapping[str, str] | None = None, launcher: str = ""
) -> Iterator[Installation]:
    """An installation for the block, which must stop cleanly and leave no process."""
    installation = start(folder, demo=demo, environ=environ, launcher=launcher)
    try:
        yield installation
    except BaseException:
        installation.stop()
        raise
    pids = installation.pids()
    code = installation.stop()
    assert code == 0, installation.output
    assert not [pid for pid in pids if alive(pid)], "processes were left behind"


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in _tasks(parent):
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return found


def command_line(pid: int) -> list[str]:
    """A process's arguments; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
