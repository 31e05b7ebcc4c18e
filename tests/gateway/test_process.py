"""The gateway as a process: how it starts, what it refuses, and that Envoy never outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from services.gateway.envoy.plan import EdgePlan
from services.gateway.envoy.supervisor import EnvoyRefused, EnvoySupervisor, envoy_binary
from services.gateway.store import GatewayStore
from tests.gateway.rig import ROOT, Edge, running_edge

QUERY = "/sealcomb.v1.VectorService/Query"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Edge]:
    """An edge of its own that the test may kill."""
    with running_edge(tmp_path) as running:
        yield running


def test_killing_policy_ends_envoy_and_a_restart_goes_on(alone: Edge) -> None:
    created = alone.create_account()
    (envoy,) = alone.envoy_pids()
    operator = alone.operator_token
    assert alone.process is not None
    alone.process.kill()
    alone.process.wait()
    wait_for(lambda: not alone.envoy_pids(), 2)
    assert not Path(f"/proc/{envoy}").exists() or alone.envoy_pids() == []
    assert alone.call(QUERY, created.token).code is grpc.StatusCode.UNAVAILABLE
    alone.start()
    assert alone.call(QUERY, created.token).code is grpc.StatusCode.OK
    assert alone.operator_token == operator


def test_a_dead_envoy_is_started_again(alone: Edge) -> None:
    created = alone.create_account()
    (first,) = alone.envoy_pids()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: alone.envoy_pids() not in ([], [first]), 5)
    alone.wait_serving()
    assert alone.call(QUERY, created.token).code is grpc.StatusCode.OK
    assert "envoy ended and is started again" in alone.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly_and_leaves_nothing_running(alone: Edge, number: int) -> None:
    created = alone.create_account()
    assert alone.call(QUERY, created.token).code is grpc.StatusCode.OK
    assert alone.stop(number) == 0
    assert alone.envoy_pids() == []
    assert not (alone.run_dir / "policy.sock").exists()
    assert "gateway stopped" in alone.log()


def test_use_is_written_down_before_it_stops(alone: Edge) -> None:
    created = alone.create_account()
    alone.call(QUERY, created.token)
    alone.stop()
    store = GatewayStore(f"sqlite:///{alone.folder}/gateway.db")
    row = store.token(created.token.split("_")[2])
    store.close()
    assert row is not None
    assert row.used_time_ms is not None
    assert time.time() * 1000 - row.used_time_ms < 120_000


def test_a_lost_operator_token_is_replaced_and_the_old_one_ends(alone: Edge) -> None:
    old = alone.operator_token
    done = run(alone.environment(), "--new-operator-token")
    assert done.returncode == 0, done.stderr
    new = alone.operator_token
    assert new != old
    assert new not in done.stdout + done.stderr
    path = "/sealcomb.v1.AccountService/ListAccounts"
    assert alone.call(path, new).code is grpc.StatusCode.OK
    assert alone.call(path, old).reason in ("TOKEN_REVOKED", "")
    # Another process revoked it, so a session held here may last its few seconds.
    wait_for(lambda: alone.call(path, old).reason == "TOKEN_REVOKED", 6)


def test_help_says_what_it_is() -> None:
    done = run({"PATH": os.environ["PATH"]}, "--help")
    assert done.returncode == 0
    assert "--new-operator-token" in done.stdout


def test_missing_settings_are_named_and_no_value_is_shown() -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "SEALCOMB_LISTEN": "canary-value",
        "SEALCOMB_BURST": "canary-value",
    }
    done = run(environment)
    assert done.returncode == 2
    for name in ("SEALCOMB_LISTEN", "SEALCOMB_BURST", "SEALCOMB_EDGE_LISTEN", "SEALCOMB_TOKEN_PEPPER_FILE"):
        assert name in done.stderr
    assert "canary-value" not in done.stderr + done.stdout


async def test_a_configuration_that_envoy_refuses_never_starts(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    plan = EdgePlan(
        "127.0.0.1:1", tmp_path, tmp_path, run_dir, {"keyvault": "127.0.0.1:2"}, 1, 1, 1, frozenset()
    )
    supervisor = EnvoySupervisor(plan, 1, envoy_binary())
    with pytest.raises(EnvoyRefused):
        await supervisor.prepare()
    assert supervisor.pid is None


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = ":".join(str(ROOT / part) for part in ("", "protos", "client"))
    return subprocess.run(
        [sys.executable, "-m", "services.gateway.main", *arguments],
        env={**environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=30,
    )


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
