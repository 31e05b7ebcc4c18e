"""B11: more load than a service can bear is refused at once, so that what is admitted is served.

The figures that are promised are printed by `make attack-edge`; here the bounds are wide, for
machines that do other things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from services.common.methods import EDGE_METHODS
from services.gateway.reflection import server_stream_methods
from tests.attacks.edge_overload import (
    IN_FLIGHT_MAX,
    edge_with_a_slow_service,
    neighbours,
    overload,
    unbounded,
)
from tests.gateway.load import Kind, load
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import weakened


@pytest.fixture(scope="module")
def slow_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with edge_with_a_slow_service(tmp_path_factory.mktemp("overload")) as running:
        yield running


@pytest.fixture(scope="module")
def token(slow_edge: Edge) -> str:
    return slow_edge.create_account().token


def test_what_is_admitted_is_served_though_far_more_is_asked(slow_edge: Edge, token: str) -> None:
    result = overload(slow_edge, token, 5, 1.5)
    assert set(result.during.failures) == {"UNAVAILABLE"}
    assert result.during.failed > 2 * result.during.good
    assert "too many calls at once" in result.during.details[0]
    assert result.goodput_share > 0.6
    assert result.p99_ratio < 5
    assert result.memory_growth_bytes < 32 << 20
    assert not result.after.failures
    assert result.recovered_share > 0.6


def test_without_the_bound_everyone_waits_for_everyone(slow_edge: Edge, token: str) -> None:
    """Twin of the test above."""
    with weakened(slow_edge, unbounded) as twin:
        result = overload(twin, token, 5, 1.5)
    assert result.p99_ratio > 5 or result.goodput_share < 0.6
    assert "UNAVAILABLE" not in result.during.failures


def test_streams_and_other_calls_do_not_take_each_others_places(slow_edge: Edge, token: str) -> None:
    """Calls that fill every place leave a stream's untouched; all streams are told from the descriptors."""
    streaming = "/sealcomb.v1.VectorService/UpsertStream"
    assert streaming in EDGE_METHODS
    assert "/sealcomb.v1.DocumentService/DownloadDocument" in server_stream_methods()
    crowd = Kind(token, body=b"s1000", callers=2 * IN_FLIGHT_MAX)
    with load(slow_edge, crowd) as full, load(slow_edge, Kind(token, streaming, callers=1)) as stream:
        wait_for(lambda: full.failed > 20 and stream.good > 0)
    assert not stream.failures


def test_an_account_far_above_its_limit_costs_its_neighbour_no_call(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """B11."""
    with running_edge(tmp_path_factory.mktemp("neighbours")) as edge:
        greedy = edge.create_account("greedy", calls_per_second=20, burst=20).token
        modest = edge.create_account("modest").token
        result = neighbours(edge, greedy, modest, 200, 1.5)
    assert not result.beside.failures
    assert result.beside.good > 20
    assert set(result.greedy.failures) == {"RESOURCE_EXHAUSTED"}
    assert result.greedy.good <= 20 + 20 * (result.greedy.seconds + 1)


def wait_for(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
