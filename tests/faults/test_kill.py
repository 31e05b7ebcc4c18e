"""kill -9 of any service at any moment, fifty times, while documents and points are being written.

What was acknowledged must be there and findable afterwards, and nothing may be there by half:
a batch of points is all or nothing, and a listed document has its original and all its passages.
"""

from __future__ import annotations

import io
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sealcomb.v1.vector_service_pb2 import Point
from sealcomb_client import ApiError, Client
from sealcomb_client.content import point
from tests.system.installation import SERVICES, Account, Installation, command_line, running

KILLS = 50
WITHIN_S = 150.0
DIMENSION = 16
BATCH = 20
VICTIMS = (*SERVICES, "envoy")


@dataclass
class Written:
    """What the writers tried and what was acknowledged."""

    documents: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    batches_tried: list[str] = field(default_factory=list)
    batches_done: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def write_documents(account: Account, stop: threading.Event, written: Written) -> None:
    """Uploads documents of three passages or so, each with a word of its own in every passage."""
    with Client(account.connection) as client:
        while not stop.is_set():
            word = "zq" + "".join(secrets.choice("bcdfghjklmnprtvz") for _ in range(14))
            body = "\n\n".join(f"{word} part {n}. " + "The seal holds. " * 40 for n in range(3)).encode()
            try:
                document = client.documents.upload("texts", body, name=f"{word}.txt", timeout_s=30)
            except ApiError as error:
                written.failures.append(str(error))
                continue
            written.documents[document.id] = (word, body)


def write_points(account: Account, stop: threading.Event, written: Written) -> None:
    """Upserts batches whose points have ids of their own."""
    with Client(account.connection) as client:
        while not stop.is_set():
            batch = secrets.token_hex(6)
            written.batches_tried.append(batch)
            try:
                client.points.upsert("vectors", points_of(batch), timeout_s=30)
            except ApiError as error:
                written.failures.append(str(error))
                continue
            written.batches_done.append(batch)
            time.sleep(0.01)


def points_of(batch: str) -> list[Point]:
    chance = random.Random(batch)
    return [
        point(f"{batch}-{n}", [chance.uniform(-1, 1) for _ in range(DIMENSION)], metadata={"batch": batch})
        for n in range(BATCH)
    ]


def victim_pid(installation: Installation, victim: str) -> int:
    if victim != "envoy":
        return installation.pid_of(victim)
    for pid in installation.pids():
        # Read once: the process may end at any moment.
        if Path(next(iter(command_line(pid)), "")).name.startswith("envoy"):
            return pid
    return 0


def kill_often(installation: Installation) -> dict[str, int]:
    """Kills each service in turn, in an order and at moments that chance decides."""
    chance = random.Random(20261124)
    killed = dict.fromkeys(VICTIMS, 0)
    end = time.monotonic() + WITHIN_S
    while sum(killed.values()) < KILLS and time.monotonic() < end:
        fewest = min(killed.values())
        victim = chance.choice([name for name, count in killed.items() if count == fewest])
        pid = victim_pid(installation, victim)
        if pid:
            os.kill(pid, signal.SIGKILL)
            killed[victim] += 1
        # Sometimes the next one dies while the last one is still starting.
        if chance.random() < 0.75:
            installation.wait_serving()
            time.sleep(chance.uniform(0.0, 1.2))
    return killed


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Account, Written, dict[str, int]]]:
    with running(tmp_path_factory.mktemp("kill")) as installation:
        account = installation.new_account()
        account.client.collections.create("texts", embedder="default")
        account.client.collections.create("vectors", dimension=DIMENSION)
        written, stop = Written(), threading.Event()
        writers = [
            threading.Thread(target=target, args=(account, stop, written))
            for target in (write_documents, write_documents, write_points)
        ]
        for writer in writers:
            writer.start()
        try:
            killed = kill_often(installation)
        finally:
            stop.set()
            for writer in writers:
                writer.join(timeout=60)
        installation.wait_serving()
        yield account, written, killed


@pytest.mark.timeout(400)
def test_every_service_was_killed_often_and_writing_went_on(
    survived: tuple[Account, Written, dict[str, int]],
) -> None:
    _account, written, killed = survived
    assert sum(killed.values()) == KILLS
    assert min(killed.values()) >= KILLS // len(VICTIMS)
    assert len(written.documents) >= 15, written.failures
    assert len(written.batches_done) >= 50
    # An outage is told as one; it never looks like a caller's own mistake.
    assert not [text for text in written.failures if "REFUSED" in text or "INTERNAL" in text]


def test_every_acknowledged_document_is_listed_findable_and_whole(
    survived: tuple[Account, Written, dict[str, int]],
) -> None:
    account, written, _killed = survived
    client = account.client
    listed = {document.id: document for document in client.documents.list("texts")}
    for document_id, (word, body) in written.documents.items():
        assert document_id in listed
        hits = client.search("texts", word, mode="lexical", top_k=10)
        assert {hit.document_id for hit in hits} == {document_id}
        assert len(hits) == listed[document_id].passages
        original = io.BytesIO()
        client.documents.download("texts", document_id, original)
        assert original.getvalue() == body


def test_no_document_is_there_by_half(survived: tuple[Account, Written, dict[str, int]]) -> None:
    """Unacknowledged ones included: a listed document has its original, a passage has its document."""
    account, _written, _killed = survived
    client = account.client
    listed = list(client.documents.list("texts"))
    assert len({document.name for document in listed}) == len(listed), "an upload was carried out twice"
    assert client.points.count("texts") == sum(document.passages for document in listed)
    for document in listed:
        original = io.BytesIO()
        client.documents.download("texts", document.id, original)
        assert len(original.getvalue()) == document.size_bytes


def test_every_acknowledged_batch_of_points_is_there_and_no_batch_by_half(
    survived: tuple[Account, Written, dict[str, int]],
) -> None:
    account, written, _killed = survived
    present: dict[str, int] = {}
    for stored in account.client.points.list("vectors", page_size=1000):
        batch = stored.id.split("-")[0]
        present[batch] = present.get(batch, 0) + 1
    assert set(present) <= set(written.batches_tried)
    assert set(present.values()) <= {BATCH}
    assert set(written.batches_done) <= set(present)
    chance = random.Random(1)
    for batch in chance.sample(written.batches_done, 20):
        wanted = chance.choice(points_of(batch))
        found = account.client.points.query("vectors", wanted.vector_f32, top_k=1)
        assert found[0].id == wanted.id
