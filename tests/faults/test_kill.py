"""kill -9 of any service at any moment, fifty times, while documents and points are being written.

What was acknowledged must be there and findable afterwards, and nothing may be there by half:
a batch of points is all or nothing, and a listed document has its original and all its passages.
"""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.load import (
    BATCH,
    VICTIMS,
    Written,
    points_of,
    victim_pid,
    writing,
)
from tests.system.installation import Account, Installation, running

KILLS = 50
WITHIN_S = 150.0


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
        with writing(account) as written:
            killed = kill_often(installation)
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
