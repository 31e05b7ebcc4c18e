"""The whole installation on PostgreSQL, a bucket and Valkey, with two vectorstores behind the edge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from sealcomb_client import ApiError, Client
from sealcomb_client.content import point
from tests.postgres import Postgres
from tests.seaweed import SeaweedFs
from tests.system.spread import Spread, running_spread
from tests.valkey_server import running_valkey


@pytest.fixture(scope="module")
def spread(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, seaweed: SeaweedFs
) -> Iterator[Spread]:
    """The installation."""
    folder = tmp_path_factory.mktemp("spread")
    with running_valkey(folder) as valkey, running_spread(folder, postgres, seaweed, valkey) as spread:
        yield spread


@pytest.fixture
def client(spread: Spread) -> Client:
    """A client of an account of the test's own."""
    made = spread.client(spread.connection).accounts.create("bees")
    return spread.client(replace(spread.connection, token=made.token))


def test_documents_and_vectors_are_there_and_nothing_is_on_this_machine(
    spread: Spread, client: Client
) -> None:
    client.collections.create("texts", embedder="default")
    client.documents.upload("texts", b"Bees seal honey under caps of wax.", name="bees.txt")
    assert client.search("texts", "what covers honey?", top_k=1)[0].document_name == "bees.txt"
    client.collections.create("points", dimension=2)
    client.points.upsert("points", [point("a", [1, 0]), point("b", [0, 1])])
    assert client.points.query("points", [1, 0.1], top_k=1)[0].id == "a"
    left = [path for path in spread.layout.data.rglob("*") if path.is_file()]
    assert [path for path in left if path.suffix in (".db", ".db-wal") or "objects" in path.parts] == []
    assert sum(spread.held().values()) == 2


def test_f15_a_holder_that_is_killed_under_writes_loses_nothing_that_was_acknowledged(
    spread: Spread, client: Client
) -> None:
    """F15, F1's class: kill -9 of the holder while four write; every acknowledged point is there."""
    client.collections.create("written", dimension=2)
    client.points.upsert("written", [point("first", [1, 1])])
    stop, acknowledged = threading.Event(), ["first"]

    def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"w{worker}-{number}"
            number += 1
            try:
                client.points.upsert("written", [point(name, [1, number])])
            except ApiError:
                continue
            acknowledged.append(name)

    workers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    try:
        _until(lambda: len(acknowledged) > 40)
        before = spread.held()
        holder = max(before, key=before.__getitem__)
        spread.processes[holder].kill()
        spread.processes[holder].wait()
        known = len(acknowledged)
        _until(lambda: len(acknowledged) > known + 40)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    there = {found.id for found in client.points.list("written")}
    assert set(acknowledged) <= there
    spread.start_vectorstore(int(holder.removeprefix("vectorstore")))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
