"""C3: certificates of the edge and behind it renewed under load, without a dropped call."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.methods import VECTORSTORE
from services.standalone.pki import ensure_installation
from tests.gateway.load import Kind, Outcome, load
from tests.gateway.replica import replicas
from tests.gateway.rig import Edge, running_edge

_RENEWED = ("edge", "gateway", "vectorstore")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("certificates")
    with (
        replicas(ensure_installation(folder / "keys"), VECTORSTORE, "v") as (store,),
        running_edge(folder, vectorstore_address=store.address) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


def test_renewals_under_load_drop_no_call(edge: Edge, token: str) -> None:
    """Old connections and ever new ones, while every certificate on the way is renewed, three times."""
    seen = {served(edge)}
    pids = edge.envoy_pids()
    old = Kind(token, callers=2)
    new = Kind(token, callers=1, fresh=True)
    with load(edge, old) as steady, load(edge, new) as fresh:
        for _ in range(3):
            renew(edge.installation.keys_dir)
            wait_for(lambda: served(edge) not in seen)
            seen.add(served(edge))
            wait_for_more(fresh)
    assert not steady.failures, steady.details
    assert not fresh.failures, fresh.details
    assert steady.good > 50
    assert len(seen) == 4
    assert edge.envoy_pids() == pids


def test_a_restart_in_place_of_a_renewal_drops_calls(edge: Edge, token: str) -> None:
    """Twin of the test above: the other way to a new certificate."""
    with load(edge, Kind(token, callers=2)) as steady:
        wait_for(lambda: steady.good > 20)
        for pid in edge.envoy_pids():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: bool(steady.failures))
    edge.wait_serving()


def wait_for_more(outcome: Outcome) -> None:
    before = outcome.good
    wait_for(lambda: outcome.good > before + 5)


def renew(keys_dir: Path) -> None:
    """A new certificate for each, as the next start of an installation makes where one is missing."""
    for name in _RENEWED:
        (keys_dir / "tls" / name / "cert.pem").unlink()
    ensure_installation(keys_dir)


def served(edge: Edge) -> str:
    return ssl.get_server_certificate(("127.0.0.1", edge.port), ca_certs=str(edge.installation.edge_ca_file))


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
