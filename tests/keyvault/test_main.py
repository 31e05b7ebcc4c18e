"""The keyvault process: starts only with its own root key, hides its memory, stops cleanly (D16, D26)."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest

from services.common.process import forbid_dumps, swap_is_on
from services.standalone.pki import ensure_installation

_START_S = 20


class _Install:
    """An installation in a folder, and its keyvault's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = ensure_installation(folder / "keys")
        (folder / "data").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "SEALCOMB_LISTEN": f"127.0.0.1:{port}",
            "SEALCOMB_TLS_DIR": str(self.keys.tls_dir("keyvault")),
            "SEALCOMB_CONTEXT_TRUST_DIR": str(self.keys.context_trust_dir),
            "SEALCOMB_CONTEXT_KEY_FILE": str(self.keys.context_key_file("keyvault")),
            "SEALCOMB_DATABASE_URL": f"sqlite:///{folder}/data/keyvault.db",
            "SEALCOMB_ROOT_KEY_FILE": str(self.keys.root_key_file),
        }

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Runs the process to its end."""
        command = [sys.executable, "-m", "services.keyvault.main", *arguments]
        environment = {name: value for name, value in {**self.environment, **changes}.items() if value}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_START_S, check=False
        )

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The process while it serves."""
        command = [sys.executable, "-m", "services.keyvault.main", *arguments]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True) as started:
            try:
                assert started.stderr is not None
                for line in started.stderr:
                    if json.loads(line)["event"] == "serving":
                        break
                yield started
            finally:
                started.kill()

    @contextmanager
    def logging_to(self, log: IO[bytes]) -> Iterator[None]:
        """The process while it serves, its log in a file."""
        command = [sys.executable, "-m", "services.keyvault.main"]
        with subprocess.Popen(command, env=self.environment, stderr=log) as started:
            try:
                host, _, port = self.environment["SEALCOMB_LISTEN"].partition(":")
                for _ in range(_START_S * 20):
                    try:
                        socket.create_connection((host, int(port)), 1).close()
                        break
                    except OSError:
                        time.sleep(0.05)
                yield
                started.terminate()
                started.wait(_START_S)
            finally:
                started.kill()


@pytest.fixture
def install(tmp_path: Path) -> _Install:
    """A fresh installation."""
    return _Install(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_cleanly(install: _Install, number: signal.Signals) -> None:
    with install.serving() as started:
        started.send_signal(number)
        assert started.wait(10) == 0
        assert started.stderr is not None
        assert [json.loads(line)["event"] for line in started.stderr] == ["stopping"]


def test_it_starts_again_after_kill_9(install: _Install) -> None:
    for _ in range(3):
        with install.serving() as started:
            started.kill()
            started.wait(10)


def test_its_memory_becomes_no_file(install: _Install) -> None:
    """D16: no core dumps, not by an abort either; no key in its environment or its files."""
    with install.serving() as started:
        limits = Path(f"/proc/{started.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        root_key = install.keys.root_key_file.read_bytes()
        assert root_key not in Path(f"/proc/{started.pid}/environ").read_bytes()
        started.send_signal(signal.SIGABRT)
        assert started.wait(10) == -signal.SIGABRT
    written = [path for path in (install.folder / "data").rglob("*") if path.is_file()]
    assert not any(root_key in path.read_bytes() for path in written)
    assert list(install.folder.rglob("core*")) == []


def test_forbidding_dumps_makes_a_process_undumpable() -> None:
    """D16, with its twin: PR_GET_DUMPABLE before and after."""
    script = (
        "import ctypes, resource\n"
        "from services.common.process import forbid_dumps\n"
        "libc = ctypes.CDLL(None)\n"
        "print(libc.prctl(3, 0, 0, 0, 0))\n"
        "forbid_dumps()\n"
        "print(libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert result.stdout.split("\n")[:2] == ["1", "0 (0, 0)"]


def test_a_process_that_cannot_forbid_dumps_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Libc:
        def prctl(self, *_arguments: int) -> int:
            """Fails."""
            return -1

    monkeypatch.setattr(resource, "setrlimit", lambda *_arguments: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: _Libc())
    with pytest.raises(OSError, match="Errno"):
        forbid_dumps()


def test_swap_is_noticed(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    assert not swap_is_on(swaps)
    swaps.write_text("Filename Type Size Used Priority\n")
    assert not swap_is_on(swaps)
    swaps.write_text("Filename Type Size Used Priority\n/swapfile file 1 0 -2\n")
    assert swap_is_on(swaps)


def test_without_its_root_key_it_does_not_start(install: _Install) -> None:
    """D26: missing, of another installation, open to others: one line says which, and nothing listens."""
    with install.serving():
        pass
    key_file = install.keys.root_key_file
    good = key_file.read_bytes()

    key_file.write_bytes(bytes(range(100, 132)))
    _assert_refused(install.run(), "is not the one of this database")
    key_file.write_bytes(good)
    key_file.chmod(0o644)
    _assert_refused(install.run(), "chmod 600")
    key_file.unlink()
    _assert_refused(install.run(), "does not exist")
    assert not key_file.exists()
    key_file.touch(0o600)
    key_file.write_bytes(good)
    with install.serving():
        pass


def test_a_root_key_beside_the_data_is_refused(install: _Install) -> None:
    """D26: a backup of the data folder holds no key."""
    inside = install.folder / "data" / "root.key"
    inside.touch(0o600)
    inside.write_bytes(install.keys.root_key_file.read_bytes())
    _assert_refused(install.run(SEALCOMB_ROOT_KEY_FILE=str(inside)), "move it to a folder of its own")
    linked = install.folder / "keys" / "link.key"
    linked.symlink_to(inside)
    _assert_refused(install.run(SEALCOMB_ROOT_KEY_FILE=str(linked)), "move it to a folder of its own")


def test_settings_that_are_missing_are_named_without_their_values(install: _Install) -> None:
    result = install.run(SEALCOMB_DATABASE_URL="", SEALCOMB_LISTEN="canary listens nowhere")
    _assert_refused(result, "SEALCOMB_DATABASE_URL, SEALCOMB_LISTEN")
    assert "canary" not in result.stderr


def test_a_root_key_is_made_on_request_alone(install: _Install) -> None:
    new = install.folder / "keys" / "new.key"
    assert install.run("--init-root-key", SEALCOMB_ROOT_KEY_FILE=str(new)).returncode == 0
    assert len(new.read_bytes()) == 32
    _assert_refused(install.run("--init-root-key", SEALCOMB_ROOT_KEY_FILE=str(new)), "already")


def test_help_needs_no_settings() -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, "-m", "services.keyvault.main", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert "--init-root-key" in result.stdout


def _assert_refused(result: subprocess.CompletedProcess[str], why: str) -> None:
    assert result.returncode == 1
    assert why in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("seconds", ["3599.9", "2", "0", "nan", "inf", "soon"])
def test_a_replaced_key_that_could_go_before_a_permit_ends_is_refused_at_the_start(
    install: _Install, seconds: str
) -> None:
    """D20: what took the key before it was replaced may seal with it until its permit ends."""
    refused = install.run(SEALCOMB_AGED_KEY_S=seconds)
    assert refused.returncode == 1
    assert refused.stderr.strip() == "sealcomb-keyvault: settings missing or wrong: SEALCOMB_AGED_KEY_S"


def test_a_replaced_key_may_be_kept_for_longer(install: _Install) -> None:
    """The twin: an hour is the least, and a day is a setting like any other."""
    install.environment["SEALCOMB_AGED_KEY_S"] = "86400"
    with install.serving() as started:
        assert started.poll() is None


def test_a_start_on_a_full_disk_says_so(install: _Install) -> None:
    """F16: one line, and no trace of what was on its way."""
    with install.serving():
        pass
    with closing(sqlite3.connect(install.folder / "data" / "keyvault.db")) as database, database:
        for table in ("installation", "audit_events"):
            database.execute(
                f"CREATE TRIGGER full_{table} BEFORE INSERT ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
    result = install.run()
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last == "sealcomb-keyvault: the storage is full; nothing was written"
