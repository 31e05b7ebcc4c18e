"""Several replicas behind the edge, which come and go under load without a failed call."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.common.methods import INGEST, VECTORSTORE
from services.gateway.envoy.admin import EnvoyAdmin
from services.gateway.envoy.balancing import COLLECTION_HEADER
from services.standalone.pki import ensure_installation
from tests.gateway.load import QUERY, Kind, Outcome, load
from tests.gateway.replica import Replica, replicas
from tests.gateway.rig import Edge, bearer, running_edge
from tests.gateway.weakened import Json, routes, weakened

SEARCH = "/sealcomb.v1.SearchService/Search"
UPSERT = "/sealcomb.v1.VectorService/Upsert"
# How many replicas go and come back in each way.
TURNS = int(os.environ.get("SEALCOMB_TEST_TURNS", "1"))


@pytest.fixture(scope="module")
def stores(folder: Path) -> Iterator[list[Replica]]:
    with replicas(ensure_installation(folder / "keys"), VECTORSTORE, "v1", "v2", "v3") as running:
        yield running


@pytest.fixture(scope="module")
def searchers(folder: Path) -> Iterator[list[Replica]]:
    with replicas(ensure_installation(folder / "keys"), INGEST, "i1", "i2") as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("balancing")


@pytest.fixture(scope="module")
def edge(folder: Path, stores: list[Replica], searchers: list[Replica]) -> Iterator[Edge]:
    settings = {
        "vectorstore_address": ",".join(one.address for one in stores),
        "ingest_address": ",".join(one.address for one in searchers),
    }
    with running_edge(folder, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


def who_answers(edge: Edge, token: str, path: str = QUERY, *hint: tuple[str, str]) -> bytes:
    """The name of the replica that a call reached."""
    with edge.channel() as channel:
        method: Any = channel.unary_unary(path)
        answer: bytes = method(b"", metadata=(*bearer(token), *hint), timeout=10)
    return answer


def test_an_accounts_vector_calls_stay_with_one_replica_and_accounts_spread(edge: Edge) -> None:
    homes = set()
    for number in range(12):
        token = edge.create_account(f"account {number}").token
        answers = {who_answers(edge, token) for _ in range(4)}
        assert len(answers) == 1
        homes |= answers
    assert len(homes) > 1


def test_a_collection_hint_spreads_one_accounts_collections(edge: Edge, token: str) -> None:
    homes = {}
    for number in range(12):
        hint = (COLLECTION_HEADER, f"{number:04x}")
        answers = {who_answers(edge, token, QUERY, hint) for _ in range(3)}
        assert len(answers) == 1
        homes[number] = answers.pop()
    assert len(set(homes.values())) > 1


def test_only_the_beginning_of_a_hint_counts(edge: Edge, token: str) -> None:
    """A long hint costs no more than a short one, and no hint fails a call."""
    for digit in range(8):
        start = f"{digit:016x}"
        first = who_answers(edge, token, QUERY, (COLLECTION_HEADER, start))
        assert who_answers(edge, token, QUERY, (COLLECTION_HEADER, start + "x" * 5000)) == first


def test_calls_that_any_replica_may_answer_spread(edge: Edge, token: str) -> None:
    with load(edge, Kind(token, SEARCH, callers=8)) as outcome:
        wait_for(lambda: len(outcome.answers) == 2 and outcome.good > 50)
    assert not outcome.failures, outcome.details


@pytest.mark.parametrize(("bound", "under_way"), [(12, 12), (36, 36)])
def test_an_accounts_calls_under_way_are_bounded_over_all_replicas(
    edge: Edge, bound: int, under_way: int
) -> None:
    """B8, B11: three replicas, which know nothing of one another, each have a third of the bound.

    Three times the bound is its twin: as many would be let in if each replica kept all of it.
    """
    admin = EnvoyAdmin(edge.run_dir / "admin.sock")
    wait_for(lambda: admin.healthy_replicas()["vectorstore"] == 3)
    # The policy process looks every second.
    time.sleep(2.5)
    token = edge.create_account(calls_in_flight=bound).token
    calls = 120
    with edge.channel() as channel:
        method: Any = channel.unary_unary(QUERY)
        sent = [
            method.future(
                b"s60000", metadata=(*bearer(token), (COLLECTION_HEADER, f"{number:04x}")), timeout=60
            )
            for number in range(calls)
        ]
        # Some connections of HTTP/2 have room for a hundred at once; the rest wait their turn.
        wait_for(lambda: sum(one.done() for one in sent) >= calls - under_way)
        time.sleep(0.5)
        refused = [one for one in sent if one.done()]
        assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all("calls are under way" in one.details() for one in refused)
        assert len(refused) == calls - under_way
        for one in sent:
            one.cancel()


def test_replicas_come_and_go_without_a_failed_call(edge: Edge, token: str, stores: list[Replica]) -> None:
    """G8: some are drained and started again; then some are killed at once and started again."""
    turns = [stores[number % len(stores)] for number in range(TURNS)]
    outcomes = [through_a_round(edge, token, stores, turns, signal.SIGTERM, (QUERY, UPSERT))]
    # A write that a killed replica may have begun is never sent again, so reads alone are promised here.
    outcomes.append(through_a_round(edge, token, stores, turns, signal.SIGKILL, (QUERY,)))
    for outcome in outcomes:
        assert not outcome.failures, outcome.details
        assert outcome.good > 200
        assert len(outcome.answers) == 3


def test_without_retries_and_health_checks_calls_fail(edge: Edge, token: str, stores: list[Replica]) -> None:
    """Twin of the test above."""

    def weaken(config: Json) -> None:
        for cluster in config["static_resources"]["clusters"]:
            cluster.pop("health_checks", None)
            cluster.pop("outlier_detection", None)
        for route in routes(config):
            route.get("route", {}).pop("retry_policy", None)

    with weakened(edge, weaken) as twin:
        assert through_a_round(twin, token, stores, stores[:1], signal.SIGKILL, (QUERY,)).failures


def test_a_write_that_may_have_begun_is_not_sent_again(edge: Edge, token: str, stores: list[Replica]) -> None:
    home = by_name(stores, who_answers(edge, token, UPSERT))
    for path, fails in ((UPSERT, True), (QUERY, False)):
        with load(edge, Kind(token, path, body=b"s1500", callers=1)) as outcome:
            time.sleep(0.5)
            home.stop(signal.SIGKILL)
        assert bool(outcome.failures) is fails, outcome
        home.start()
        wait_for(lambda: who_answers(edge, token, UPSERT) == home.name, 90)


def through_a_round(
    edge: Edge, token: str, stores: list[Replica], turns: list[Replica], number: int, paths: tuple[str, ...]
) -> Outcome:
    """What became of a load while replicas went and came back, one after the other."""
    total = Outcome()
    hints = one_hint_for_each(edge, token, stores)
    kinds = [Kind(token, path, callers=2, metadata=[hint]) for path in paths for hint in hints]
    for one in turns:
        for part in through_one(edge, kinds, one, number):
            total.failures += part.failures
            total.answers += part.answers
            total.latencies_s += part.latencies_s
            total.details += part.details
    return total


def one_hint_for_each(edge: Edge, token: str, stores: list[Replica]) -> list[tuple[str, str]]:
    """Hints that between them reach every replica."""
    wait_for(lambda: len({who_answers(edge, token, QUERY, hint) for hint in hints_in_order(24)}) == 3, 30)
    homes = {who_answers(edge, token, QUERY, hint): hint for hint in hints_in_order(24)}
    assert len(homes) == len(stores)
    return list(homes.values())


def hints_in_order(count: int) -> list[tuple[str, str]]:
    return [(COLLECTION_HEADER, f"{digit:04x}") for digit in range(count)]


def through_one(edge: Edge, kinds: list[Kind], one: Replica, number: int) -> list[Outcome]:
    with ExitStack() as stack:
        running = [stack.enter_context(load(edge, kind)) for kind in kinds]

        def answered() -> int:
            return sum(part.answers[one.name] for part in running)

        wait_for(lambda: answered() > 5, 30)
        one.stop(number)
        time.sleep(0.5)
        before = answered()
        one.start()
        wait_for(lambda: answered() > before, 30)
    return running


def by_name(stores: list[Replica], name: bytes) -> Replica:
    return next(one for one in stores if one.name == name)


def wait_for(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
