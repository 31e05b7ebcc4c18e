"""Writers that note what was acknowledged to them, and whether all of it is there afterwards."""

from __future__ import annotations

import io
import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sealcomb.v1.vector_service_pb2 import Point
from sealcomb_client import ApiError, Client
from sealcomb_client.content import point
from tests.system.installation import SERVICES, Account, Installation, command_line

DIMENSION = 16
BATCH = 20
VICTIMS = (*SERVICES, "envoy")
_ASKED = 20


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


@contextmanager
def writing(account: Account) -> Iterator[Written]:
    """Documents and points are written for the block."""
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
        yield written
    finally:
        stop.set()
        for writer in writers:
            writer.join(timeout=120)


def harm(account: Account, written: Written) -> tuple[list[str], list[str]]:
    """What is lost, and what is wrong."""
    lost, wrong = _harm_of_documents(account, written)
    present: dict[str, int] = {}
    for stored in account.client.points.list("vectors", page_size=1000):
        batch = stored.id.split("-")[0]
        present[batch] = present.get(batch, 0) + 1
    lost += [f"batch {batch}" for batch in written.batches_done if batch not in present]
    wrong += [f"batch {batch} by half" for batch, count in present.items() if count != BATCH]
    wrong += [f"batch {batch} from nowhere" for batch in present if batch not in written.batches_tried]
    wrong += [text for text in written.failures if "INTERNAL" in text]
    chance = random.Random(1)
    for batch in chance.sample(written.batches_done, min(_ASKED, len(written.batches_done))):
        wanted = chance.choice(points_of(batch))
        if account.client.points.query("vectors", wanted.vector_f32, top_k=1)[0].id != wanted.id:
            wrong.append(f"the nearest to {wanted.id}")
    return lost, wrong


def _harm_of_documents(account: Account, written: Written) -> tuple[list[str], list[str]]:
    client, lost, wrong = account.client, list[str](), list[str]()
    listed = {document.id: document for document in client.documents.list("texts")}
    if client.points.count("texts") != sum(document.passages for document in listed.values()):
        wrong.append("passages without their document")
    for document_id, (word, body) in written.documents.items():
        if document_id not in listed:
            lost.append(f"document {document_id}")
            continue
        hits = client.search("texts", word, mode="lexical", top_k=10)
        if [hit.document_id for hit in hits] != [document_id] * listed[document_id].passages:
            wrong.append(f"what is found of document {document_id}")
        original = io.BytesIO()
        client.documents.download("texts", document_id, original)
        if original.getvalue() != body:
            wrong.append(f"the original of document {document_id}")
    return lost, wrong
