"""Hostile and broken sources, through the whole of ingest: each a typed result, and the rest goes on."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb.v1 import source_service_pb2 as source_pb
from services.ingest.egress import client
from services.ingest.egress.client import EgressLimits
from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.contract import Batch, CredentialRefused, Item, SourceDenied
from services.ingest.sources.webdav import WebDavType
from tests.ingest.jobs.rig import call, connect, create, ended, texts
from tests.ingest.memory_source import MemorySource, MemorySourceType
from tests.ingest.rig import Rig, details, running
from tests.ingest.sources.servers.https import HttpsServer, Reply, Request, Tls, make_tls
from tests.ingest.sources.servers.webdav import WebDavWorld

GIB = 1 << 30


@dataclass
class Hostile:
    """A WebDAV server that answers some names as an attacker would, and another host beside it."""

    rig: Rig
    world: WebDavWorld
    server: HttpsServer
    other: HttpsServer
    answers: dict[str, Reply]

    async def ingest(self, **fields: Any) -> pb.Ingestion:
        """Brings everything in; how it ended."""
        request = pb.CreateIngestionRequest(
            collection="notes", kind="webdav", temporary_token=self.world.token, **fields
        )
        request.settings.update({"url": str(self.world.settings()["url"])})
        begun = (await call(self.rig, "CreateIngestion", request)).ingestion
        return await ended(self.rig, begun.id, within_s=60)

    async def failed(self, done: pb.Ingestion) -> dict[str, str]:
        """The reasons of what was set aside, by name."""
        found = await call(self.rig, "ListFailedItems", pb.ListFailedItemsRequest(id=done.id))
        return {item.name: item.reason for item in found.items}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"), ())


@pytest.fixture
async def hostile(tmp_path: Path, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hostile]:
    """A running ingest beside both servers; the other one may be reached, but is not the source."""
    monkeypatch.setattr(client, "EgressLimits", lambda: EgressLimits(body_bytes_max=1 << 20, timeout_s=2.0))
    world, answers = WebDavWorld(), dict[str, Reply]()

    def handle(request: Request) -> Reply:
        special = answers.get(request.path.rpartition("/")[2])
        return special if special is not None and request.method == "GET" else world.handle(request)

    server = HttpsServer(handle, tls.server)
    other = HttpsServer(lambda _: Reply(200, {"content-type": "text/plain"}, b"stolen"), tls.server)
    async with server.running(), other.running():
        world.base = f"https://127.0.0.1:{server.port}"
        kind = WebDavType(timing=Timing(), limits=RetryLimits(attempts_max=1))
        async with running(
            tmp_path,
            source_types=[kind],
            extract_workers=1,
            egress_allow=f"127.0.0.1:{server.port},127.0.0.1:{other.port}",
            egress_ca_file=tls.ca_file,
        ) as rig:
            rig.collection()
            world.put("good.txt", b"words of good.txt")
            yield Hostile(rig, world, server, other, answers)


async def test_each_hostile_answer_is_a_typed_failure_of_its_item_alone(hostile: Hostile) -> None:
    """E3, E16, E18: sizes that are lies, answers without an end, redirects inwards; in bounded memory."""

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        while True:
            writer.write(chunk)
            await writer.drain()

    async def ten_gigabytes(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (10 * GIB))
        await writer.drain()
        await asyncio.sleep(5)

    async def dripping(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.3)

    async def longer_than_said(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n")
        writer.write(b"content-length: 5\r\n\r\nshort and more")
        await writer.drain()

    metadata = "https://169.254.169.254/latest/meta-data/"
    elsewhere = f"https://127.0.0.1:{hostile.other.port}/take"
    hostile.answers |= {
        "endless.txt": Reply(stream=endless),
        "huge.txt": Reply(stream=ten_gigabytes),
        "dripping.txt": Reply(stream=dripping),
        "shorter.txt": Reply(200, {"content-type": "text/plain"}, b"words", truncate=True),
        "longer.txt": Reply(stream=longer_than_said),
        "metadata.txt": Reply(302, {"location": metadata}),
        "plain.txt": Reply(302, {"location": "http://127.0.0.1/"}),
        "elsewhere.txt": Reply(307, {"location": elsewhere}),
    }
    for name in hostile.answers:
        hostile.world.put(name, b"whatever")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await hostile.ingest()
    assert done.state == pb.INGESTION_STATE_PARTIAL
    assert await hostile.failed(done) == {
        "endless.txt": "ITEM_TOO_LARGE",
        "huge.txt": "ITEM_TOO_LARGE",
        "dripping.txt": "SOURCE_UNAVAILABLE",
        "shorter.txt": "SOURCE_UNAVAILABLE",
        "metadata.txt": "ADDRESS_REFUSED",
        "plain.txt": "ADDRESS_REFUSED",
    }
    found = texts(hostile.rig)
    assert found["good.txt"] == "words of good.txt"
    # What comes after the length that was said is no part of the answer.
    assert found["longer.txt"] == "short"
    # Another host was asked, as it may be; it was told nothing.
    assert [("authorization" in request.headers) for request in hostile.other.requests] == [False]
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 200 * 1024, "more than a few times the limit of one item was held"


NAMES = (
    "../../../../etc/passwd",
    "a\x1b[31mred\x07.txt",
    "line\r\nX-Evil: 1.txt",
    "\u202egnp.exe",
    "=cmd|' /C calc'!A0.txt",
    "%2e%2e%2fx.txt",
    "CON.txt",
    "nul\x00byte.txt",
    "\ud83d\ude00 smile".encode("utf-16", "surrogatepass").decode("utf-16") + ".txt",
    "half \ud800 surrogate.txt",
    "x" * 5000 + ".txt",
    "   ",
)


@pytest.fixture
def memory() -> MemorySourceType:
    return MemorySourceType()


@pytest.fixture
async def rig(tmp_path: Path, memory: MemorySourceType) -> AsyncIterator[Rig]:
    """A running ingest with a source in memory and a collection."""
    async with running(
        tmp_path, source_types=[memory], ingestion_lease_s=2, extract_workers=1, ingestion_items_max=40
    ) as made:
        made.collection()
        yield made


async def test_no_name_is_more_than_a_name(
    rig: Rig, memory: MemorySourceType, capfd: pytest.CaptureFixture[str]
) -> None:
    """E24: paths, controls, escapes; printable where it is shown, in no path and no line of a log."""
    for number, name in enumerate(NAMES):
        memory.put(f"id {number} {name}", f"Text {number}.", name=name)
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert done.state == pb.INGESTION_STATE_SUCCEEDED
    assert done.counts.indexed == len(NAMES)
    records = next(iter(rig.vectorstore.collections.values())).records.values()
    assert all(record.name.isprintable() and 0 < len(record.name) <= 512 for record in records)
    assert not any("passwd" in key or ".." in key for key in rig.objects)
    said = "".join(capfd.readouterr())
    assert not [part for part in ("passwd", "[31m", "X-Evil", "calc") if part in said]


async def test_a_folder_of_too_many_names_ends_with_a_reason(rig: Rig, memory: MemorySourceType) -> None:
    """E18: a million names by default; what was named before it stays to be narrowed and tried again."""
    for number in range(60):
        memory.put(f"item {number}", "text")
    done = await ended(rig, (await create(rig, connection_id=await connect(rig))).id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "TOO_MANY_ITEMS")
    assert memory.fetches() == []


async def test_a_listing_that_names_nothing_and_never_ends_is_ended(
    rig: Rig, memory: MemorySourceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E18: page after page with nothing on it."""

    async def batches(self: MemorySource, cursor: bytes | None) -> AsyncIterator[Batch]:
        while True:
            yield Batch((), b"more")

    monkeypatch.setattr(MemorySource, "batches", batches)
    done = await ended(rig, (await create(rig, connection_id=await connect(rig))).id, within_s=60)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "SOURCE_ANSWER_INVALID")


async def test_a_grant_that_is_withdrawn_in_mid_job_ends_it_and_keeps_what_is_there(
    rig: Rig, memory: MemorySourceType
) -> None:
    for number in range(6):
        memory.put(f"item {number}", f"Text of item {number}.")

    def withdraw(_item: Item) -> None:
        if len(memory.fetches()) >= 4:
            memory.tokens.clear()
            raise CredentialRefused("withdrawn")

    memory.before_fetch = withdraw
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "CREDENTIAL_REFUSED")
    await asyncio.sleep(0.3)
    kept = texts(rig)
    fetched = len(memory.fetches())
    assert len(kept) < 6
    await asyncio.sleep(1.0)
    assert len(memory.fetches()) == fetched, "a refused credential was tried again"
    # Nothing is lost: with a good credential the rest comes, and nothing twice.
    memory.tokens.add("good")
    memory.before_fetch = None
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    assert (await ended(rig, begun.id, run=2)).state == pb.INGESTION_STATE_SUCCEEDED
    assert kept.items() <= texts(rig).items()
    assert len(texts(rig)) == 6


async def test_a_temporary_token_that_expires_in_mid_job_is_asked_for_anew(
    rig: Rig, memory: MemorySourceType
) -> None:
    """E2: NEEDS_TOKEN with the reason; what came before is not fetched again."""
    for number in range(6):
        memory.put(f"item {number}", f"Text of item {number}.")

    refused: set[str] = set()

    def expire(item: Item) -> None:
        if len(memory.fetches()) >= 4:
            memory.tokens.clear()
            refused.add(item.id)
            raise CredentialRefused("expired")

    memory.before_fetch = expire
    begun = await create(rig, temporary_token="good", kind="memory")
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_NEEDS_TOKEN, "CREDENTIAL_REFUSED")
    memory.tokens, memory.before_fetch = {"fresh"}, None
    memory.log.clear()
    await call(rig, "ResumeIngestion", pb.ResumeIngestionRequest(id=begun.id, temporary_token="fresh"))
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_SUCCEEDED
    assert len(texts(rig)) == 6
    assert refused <= set(memory.fetches())
    assert len(memory.fetches()) < 6, "what had come was fetched again"
    assert {token for _what, token in memory.log} == {"fresh"}


async def test_a_source_that_is_unknown_or_denied_says_so(rig: Rig, memory: MemorySourceType) -> None:
    request = source_pb.BeginConnectionRequest(kind="no such source", secret="x")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "BeginConnection", request)
    assert details(caught.value) == ("SOURCE_UNKNOWN", ["kind"])
    memory.put("item", "text")

    def deny(_number: int) -> None:
        raise SourceDenied("the folder is not yours")

    memory.before_batch = deny
    done = await ended(rig, (await create(rig, connection_id=await connect(rig))).id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "SOURCE_DENIED")
