"""A6, A19: clients that stall are cut at a limit, and cost others nothing meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attacks.edge_floods import Target
from tests.attacks.edge_slow import KINDS, Slow, cut_after, hurried, patient
from tests.gateway.load import Kind, load
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import manager, routes, weakened

_COUNT = 20
_IDS = [kind.name for kind in KINDS]
Ends = dict[str, list[float | None]]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("slow")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account("mallory").token


@pytest.fixture(scope="module")
def hurried_ends(edge: Edge, token: str) -> Ends:
    """What became of all kinds at once, every limit a second, while another account's calls went on."""
    with weakened(edge, hurried) as twin:
        good = Kind(edge.create_account("a neighbour").token, callers=1, connections=1)
        with load(twin, good) as neighbour:
            ends = all_kinds(Target(twin.port, edge.installation.edge_ca_file, token), 10)
    assert not neighbour.failures, neighbour.details
    assert neighbour.good > 50
    return ends


@pytest.fixture(scope="module")
def patient_ends(edge: Edge, token: str) -> Ends:
    """The same without any limit of time."""
    with weakened(edge, patient) as twin:
        return all_kinds(Target(twin.port, edge.installation.edge_ca_file, token), 3)


@pytest.mark.parametrize("kind", KINDS, ids=_IDS)
def test_a_client_that_stalls_is_cut(hurried_ends: Ends, kind: Slow) -> None:
    """A6, A19."""
    for seconds in hurried_ends[kind.name]:
        assert seconds is not None
        assert seconds > 0.5


@pytest.mark.parametrize("kind", KINDS, ids=_IDS)
def test_without_the_limits_it_stays(patient_ends: Ends, kind: Slow) -> None:
    """Twin of the test above."""
    assert patient_ends[kind.name] == [None] * _COUNT


def test_the_limits_that_run_are_those_of_the_table(edge: Edge) -> None:
    """A6, A19: the seconds of each kind."""
    limits = {kind.name: kind.limit_s for kind in KINDS}
    config = json.loads((edge.run_dir / "envoy.json").read_text())
    own = manager(config)
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    assert chain["transport_socket_connect_timeout"] == f"{limits['half a TLS hello']:g}s"
    assert own["request_headers_timeout"] == f"{limits['half the headers']:g}s"
    assert own["common_http_protocol_options"]["idle_timeout"] == f"{limits['no preface']:g}s"
    assert own["stream_idle_timeout"] == f"{limits['an answer never read']:g}s"
    (upload,) = (
        route for route in routes(config) if str(route["match"].get("path", "")).endswith("/UploadDocument")
    )
    upload_s = limits["an upload that sends nothing"]
    assert upload["route"]["max_stream_duration"]["max_stream_duration"] == f"{upload_s:g}s"


def all_kinds(target: Target, watch_s: float) -> Ends:
    with ThreadPoolExecutor(len(KINDS)) as pool:
        found = pool.map(lambda kind: cut_after(target, kind, _COUNT, watch_s), KINDS)
        return dict(zip(_IDS, found, strict=True))
