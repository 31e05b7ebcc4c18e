"""`make run` as a user does it: first start, second start, Ctrl-C, kill -9, and wrong starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealcomb_client import Client, Connection
from services.standalone.ports import free_ports
from tests.system.installation import Installation, alive, descendants, running, start

ROOT = Path(__file__).resolve().parents[2]


def documents(installation: Installation) -> set[tuple[str, str]]:
    client = installation.client()
    return {(document.id, document.name) for document in client.documents.list("examples")}


def test_a_first_start_answers_a_search_and_a_second_one_finds_the_data_again(tmp_path: Path) -> None:
    with running(tmp_path, demo=True) as first:
        assert "13/13" in first.output
        assert "leaked-key-runbook.pdf" in first.output
        assert "Revoke the token or disable the key at once." in first.output
        assert all(word in first.output for word in ("grpcurl -cacert", "--env-file", "from sealcomb_client"))
        assert oct((first.data / "client.env").stat().st_mode)[-3:] == "600"
        before, token = documents(first), first.connection.token
    with running(tmp_path, demo=True) as second:
        assert "ingesting" not in second.output
        assert "leaked-key-runbook.pdf" in second.output
        assert documents(second) == before
        assert second.connection.token == token


def test_make_run_is_stopped_by_ctrl_c_and_leaves_no_process(tmp_path: Path) -> None:
    """The keyboard's signal reaches make and all below it at once, as in a terminal."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SEALCOMB_DATA_DIR": str(tmp_path / "data"),
        "SEALCOMB_EDGE_PORT": str(free_ports(1)[0]),
        "SEALCOMB_EDGE_HTTP_PORT": "0",
    }
    output = tmp_path / "output.txt"
    with output.open("wb") as into:
        process = subprocess.Popen(
            ["make", "-C", str(ROOT), "run", "DEMO=0"],
            env=environment,
            stdout=into,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + 60
    while "ready at" not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.1)
    pids = descendants(process.pid)
    assert len(pids) >= 6
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    assert "stopping ..." in output.read_text()
    wait_gone(pids)


def wait_gone(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.05)


def test_a_killed_installation_leaves_no_process_and_starts_again(tmp_path: Path) -> None:
    first = start(tmp_path)
    account = first.new_account()
    account.client.collections.create("kept", dimension=2)
    pids = first.pids()
    first.process.kill()
    first.process.wait()
    wait_gone(pids)
    with running(tmp_path) as second, Client(_reached(second, account.connection)) as client:
        assert [collection.name for collection in client.collections.list()] == ["kept"]


def _reached(installation: Installation, connection: Connection) -> Connection:
    """The same token at the port of another start."""
    return Connection(installation.connection.endpoint, connection.ca_file, connection.token)


def test_a_second_start_on_the_same_data_is_refused(installation: Installation) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sealcomb-standalone")), "--no-demo"],
        env={
            "PATH": os.environ["PATH"],
            "SEALCOMB_DATA_DIR": str(installation.data),
            "SEALCOMB_EDGE_PORT": str(free_ports(1)[0]),
            "SEALCOMB_EDGE_HTTP_PORT": "0",
        },
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert b"another installation runs on" in done.stderr
    assert installation.client().health()


def test_a_port_in_use_is_named(installation: Installation, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sealcomb-standalone")), "--no-demo"],
        env={
            "PATH": os.environ["PATH"],
            "SEALCOMB_DATA_DIR": str(tmp_path / "data"),
            "SEALCOMB_EDGE_PORT": str(installation.edge_port),
            "SEALCOMB_EDGE_HTTP_PORT": "0",
        },
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"port {installation.edge_port}".encode() in done.stderr
    assert not (tmp_path / "data.keys").exists()


@pytest.mark.parametrize("service", ["keyvault", "vectorstore", "ingest", "gateway"])
def test_a_service_that_was_killed_comes_back_and_answers(installation: Installation, service: str) -> None:
    before = installation.pid_of(service)
    os.kill(before, signal.SIGKILL)
    time.sleep(0.2)
    installation.wait_serving()
    assert installation.pid_of(service) not in (0, before)
    assert installation.client().search("examples", "when is honey ripe?")
