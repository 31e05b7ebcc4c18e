"""Ingestions from a connection: listed, fetched, indexed, kept in step with the source, stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.v1 import document_service_pb2 as docs
from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb.v1 import ingestion_service_pb2_grpc as stubs
from sealcomb.v1 import source_service_pb2 as source_pb
from services.common.errors import SealcombError
from services.ingest.ingestions.items import ItemStore
from services.ingest.sources.contract import (
    ItemTooLarge,
    ItemUnfit,
    SourceDenied,
    SourceLimited,
    SourceUnavailable,
    Unread,
)
from tests.ingest.jobs.rig import call, connect, create, ended, sql, texts
from tests.ingest.memory_source import MemorySourceType
from tests.ingest.rig import OTHER_ACCOUNT, Rig, details, eventually, running


@pytest.fixture
def source() -> MemorySourceType:
    """A source with five things."""
    made = MemorySourceType()
    for number in range(5):
        made.put(f"item {number}", f"Text of item {number}, version one.")
    return made


@pytest.fixture
async def rig(tmp_path: Path, source: MemorySourceType) -> AsyncIterator[Rig]:
    """A running ingest with that source and a collection."""
    async with running(tmp_path, source_types=[source], ingestion_lease_s=2, extract_workers=1) as made:
        made.collection()
        yield made


async def test_all_there_is_becomes_searchable(rig: Rig, source: MemorySourceType) -> None:
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert done.state == pb.INGESTION_STATE_SUCCEEDED
    counts = pb.IngestionCounts(found=5, fetched=5, indexed=5)
    assert done.counts == counts
    assert texts(rig) == {f"item {n}.txt": f"Text of item {n}, version one." for n in range(5)}
    record = next(iter(rig.vectorstore.collections.values())).records
    assert {r.metadata["kind"] for r in record.values()} == {"memory"}
    assert len(rig.objects) == 5
    # Its grant has ended with it.
    await eventually(lambda: not any(rig.keyvault.permits.values()))


async def test_an_original_can_be_downloaded_and_deleted_like_any_other(rig: Rig) -> None:
    await ended(rig, (await create(rig, connection_id=await connect(rig))).id)
    records = next(iter(rig.vectorstore.collections.values())).records
    id_ = next(iter(records))
    _document, content = await rig.download("notes", id_)
    assert content.startswith(b"Text of item")
    await rig.call("DeleteDocument", docs.DeleteDocumentRequest(collection="notes", id=id_))
    assert len(rig.objects) == 4


async def test_a_retry_brings_the_source_and_the_collection_in_step(
    rig: Rig, source: MemorySourceType
) -> None:
    """E29: what changed is indexed anew under its id, what is gone or forbidden is not found any more."""
    source.things["item 4"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_PARTIAL
    ids = {r.name: r.id for r in next(iter(rig.vectorstore.collections.values())).records.values()}
    source.put("item 0", "Text of item 0, version two.")
    del source.things["item 1"]
    source.put("item 2", "now secret", principals=("ann",))
    source.things["item 2"].error = SourceDenied("forbidden")
    source.put("item 3", "Text of item 3, version one.", principals=("ann",), version="1")
    source.things["item 4"].error = None
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    done = await ended(rig, begun.id, run=2)
    assert texts(rig) == {
        "item 0.txt": "Text of item 0, version two.",
        "item 3.txt": "Text of item 3, version one.",
        "item 4.txt": "Text of item 4, version one.",
    }
    now = {r.name: r for r in next(iter(rig.vectorstore.collections.values())).records.values()}
    assert {name: record.id for name, record in now.items() if name in ids} == {
        name: ids[name] for name in ("item 0.txt", "item 3.txt")
    }
    # A permission that was lost, or came, counts as a change although the content is the same.
    assert list(now["item 3.txt"].principals) == ["ann"]
    assert (done.counts.removed, done.counts.found, done.run) == (2, 4, 2)
    assert len(rig.objects) == 3


async def test_what_has_not_changed_is_not_fetched_again(rig: Rig, source: MemorySourceType) -> None:
    source.things["item 4"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    source.log.clear()
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    done = await ended(rig, begun.id, run=2)
    assert source.fetches() == ["item 4"]
    assert (done.counts.unchanged, done.counts.failed) == (4, 1)


async def test_nobody_is_not_everybody(rig: Rig, source: MemorySourceType) -> None:
    """E29: an item that nobody may see is found by nobody; one without permissions by everybody."""
    source.put("item 0", "for nobody", principals=())
    await ended(rig, (await create(rig, connection_id=await connect(rig))).id)
    records = {r.name: r for r in next(iter(rig.vectorstore.collections.values())).records.values()}
    assert len(records["item 0.txt"].principals) == 1
    assert list(records["item 1.txt"].principals) == []


async def test_removals_of_an_incremental_source_are_followed(rig: Rig, source: MemorySourceType) -> None:
    source.incremental = True
    source.things["item 4"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    del source.things["item 0"], source.things["item 1"]
    source.removed = ["item 0", "never seen"]
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    await ended(rig, begun.id, run=2)
    # Item 1 was not named as removed, and this listing is not a whole one.
    assert set(texts(rig)) == {"item 1.txt", "item 2.txt", "item 3.txt"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ItemTooLarge("too large"), "ITEM_TOO_LARGE"),
        (ItemUnfit("unfit"), "ITEM_UNFIT"),
        (SourceDenied("no"), "SOURCE_DENIED"),
        (SourceUnavailable("down"), "SOURCE_UNAVAILABLE"),
    ],
)
async def test_an_item_that_fails_is_set_aside_with_its_reason(
    rig: Rig, source: MemorySourceType, error: SealcombError, reason: str
) -> None:
    source.things["item 2"].error = error
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert done.state == pb.INGESTION_STATE_PARTIAL
    assert (done.counts.indexed, done.counts.failed) == (4, 1)
    failed = (await call(rig, "ListFailedItems", pb.ListFailedItemsRequest(id=begun.id))).items
    assert [(item.name, item.reason) for item in failed] == [("item 2.txt", reason)]
    assert failed[0].url == "https://memory.example/item 2"


async def test_an_item_that_fails_during_anothers_look_is_not_taken_twice(
    rig: Rig, source: MemorySourceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E27: looks take long here, so that items end while one is under way."""
    look = ItemStore.waiting

    def slow(self: ItemStore, *arguments: Any) -> Any:
        found = look(self, *arguments)
        time.sleep(0.1)
        return found

    monkeypatch.setattr(ItemStore, "waiting", slow)
    for thing in source.things.values():
        thing.error = SourceDenied("no")
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert done.counts.failed == len(source.things)


async def test_a_document_that_cannot_be_read_fails_alone(rig: Rig, source: MemorySourceType) -> None:
    source.things["item 1"].content = b"\x7fELF\x02\x01\x01\x00" + bytes(64)
    source.things["item 3"].content = b""
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert (done.counts.indexed, done.counts.failed) == (3, 2)
    failed = (await call(rig, "ListFailedItems", pb.ListFailedItemsRequest(id=begun.id))).items
    assert {item.reason for item in failed} == {"UNSUPPORTED_FORMAT", "DOCUMENT_EMPTY"}
    assert len(rig.objects) == 3


async def test_a_changed_item_that_cannot_be_read_is_not_found_any_more(
    rig: Rig, source: MemorySourceType
) -> None:
    """E29: nobody knows what changed or who may still see it, so the old version must not stay."""
    source.things["item 4"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    source.put("item 0", "")
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    await ended(rig, begun.id, run=2)
    assert "item 0.txt" not in texts(rig)
    assert len(rig.objects) == 3


async def test_a_source_that_is_down_for_a_moment_costs_nothing(rig: Rig, source: MemorySourceType) -> None:
    source.things["item 2"].error, source.things["item 2"].errors = SourceUnavailable("down"), 1
    begun = await create(rig, connection_id=await connect(rig))
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_SUCCEEDED


async def test_a_source_that_asks_for_patience_gets_it(rig: Rig, source: MemorySourceType) -> None:
    source.things["item 2"].error = SourceLimited("slow down", retry_after_s=3600.0)
    source.things["item 2"].errors = 1
    begun = await create(rig, connection_id=await connect(rig))
    await eventually(lambda: bool(sql(rig, "select 1 from ingestions where reason = 'SOURCE_RATE_LIMITED'")))
    row = sql(rig, "select state, not_before_ms - create_ms from ingestions")[0]
    assert row[0] == "queued"
    assert row[1] >= 3_600_000
    assert sql(rig, "select min(attempts) from ingestion_items")[0][0] == 0
    sql(rig, "update ingestions set not_before_ms = 0")
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_SUCCEEDED


async def test_what_cannot_be_listed_is_said_and_listed_again(rig: Rig, source: MemorySourceType) -> None:
    source.unread = [Unread("folder", "a folder", SourceDenied("no"))]
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert (done.counts.indexed, done.counts.failed) == (5, 1)
    source.unread = []
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    done = await ended(rig, begun.id, run=2)
    assert (done.state, done.counts.failed) == (pb.INGESTION_STATE_SUCCEEDED, 0)


async def test_a_cursor_that_has_expired_means_beginning_again(rig: Rig, source: MemorySourceType) -> None:
    source.things["item 4"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    source.things["item 4"].error = None
    source.cursor_expired = True
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    assert (await ended(rig, begun.id, run=2)).counts.indexed == 1


async def test_progress_is_streamed_until_the_end(rig: Rig, source: MemorySourceType) -> None:
    async def slowly(_item: object) -> None:
        await asyncio.sleep(0.15)

    source.before_fetch = slowly
    begun = await create(rig, connection_id=await connect(rig))
    method = "/sealcomb.v1.IngestionService/WatchIngestion"
    async with rig.channel() as channel:
        stream = stubs.IngestionServiceStub(channel).WatchIngestion(
            pb.WatchIngestionRequest(id=begun.id),
            metadata=rig.metadata(method, scopes=("sources",)),
            timeout=20,
        )
        seen = [message.ingestion async for message in stream]
    assert seen[-1].state == pb.INGESTION_STATE_SUCCEEDED
    assert seen[-1].counts.indexed == 5
    assert len({one.counts.fetched for one in seen}) > 2
    assert [one.counts.indexed for one in seen] == sorted(one.counts.indexed for one in seen)


async def test_a_cancelled_ingestion_stops_and_leaves_what_is_indexed(
    rig: Rig, source: MemorySourceType
) -> None:
    stuck = asyncio.Event()

    async def stop_at(item: Any) -> None:
        if item.id == "item 4":
            await stuck.wait()

    source.before_fetch = stop_at
    begun = await create(rig, connection_id=await connect(rig))
    await eventually(lambda: len(source.fetches()) == 5)
    await eventually(lambda: len(texts(rig)) == 4)
    done = (await call(rig, "CancelIngestion", pb.CancelIngestionRequest(id=begun.id))).ingestion
    assert done.state == pb.INGESTION_STATE_CANCELLED
    stuck.set()
    await asyncio.sleep(0.3)
    assert len(texts(rig)) == 4
    assert not any(rig.keyvault.permits.values())
    again = (await call(rig, "CancelIngestion", pb.CancelIngestionRequest(id=begun.id))).ingestion
    assert again.finish_time == done.finish_time


async def test_the_same_idempotency_key_begins_one_ingestion(rig: Rig) -> None:
    """E27: a call that is repeated after a lost answer finds what the first one began."""
    connection = await connect(rig)
    first = await create(rig, connection_id=connection, idempotency_key="once")
    again = await create(rig, connection_id=connection, idempotency_key="once")
    other = await create(rig, connection_id=connection, idempotency_key="twice")
    assert first.id == again.id != other.id
    assert sql(rig, "select count(*) from ingestions")[0][0] == 2


async def test_ingestions_are_listed_page_by_page(rig: Rig) -> None:
    connection = await connect(rig)
    ids = [(await create(rig, connection_id=connection)).id for _ in range(3)]
    found, token = [], ""
    while True:
        page = await call(rig, "ListIngestions", pb.ListIngestionsRequest(page_size=2, page_token=token))
        found += [one.id for one in page.ingestions]
        token = page.next_page_token
        if not token:
            break
    assert found == ids
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "ListIngestions", pb.ListIngestionsRequest(page_token="x" * 40))
    assert details(caught.value)[1] == ["page_token"]


async def test_another_account_sees_nothing_of_it(rig: Rig) -> None:
    """E11: a foreign ingestion or connection is one that does not exist."""
    connection = await connect(rig)
    begun = await create(rig, connection_id=connection)
    rig.collection(account=OTHER_ACCOUNT)
    for name, request in (
        ("GetIngestion", pb.GetIngestionRequest(id=begun.id)),
        ("CancelIngestion", pb.CancelIngestionRequest(id=begun.id)),
        ("RetryIngestion", pb.RetryIngestionRequest(id=begun.id)),
        ("ResumeIngestion", pb.ResumeIngestionRequest(id=begun.id, temporary_token="good")),
        ("ListFailedItems", pb.ListFailedItemsRequest(id=begun.id)),
        ("CreateIngestion", pb.CreateIngestionRequest(collection="notes", connection_id=connection)),
        ("Disconnect", source_pb.DisconnectRequest(connection_id=connection)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(rig, name, request, OTHER_ACCOUNT)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert not (await call(rig, "ListIngestions", pb.ListIngestionsRequest(), OTHER_ACCOUNT)).ingestions


async def test_a_token_for_other_collections_sees_nothing_of_it(rig: Rig) -> None:
    begun = await create(rig, connection_id=await connect(rig))
    restricted: dict[str, Any] = {"collections": ("others",)}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "GetIngestion", pb.GetIngestionRequest(id=begun.id), **restricted)
    assert details(caught.value)[0] == "INGESTION_NOT_FOUND"
    assert not (await call(rig, "ListIngestions", pb.ListIngestionsRequest(), **restricted)).ingestions


async def test_writing_scope_is_needed_as_well(rig: Rig) -> None:
    connection = await connect(rig)
    request = pb.CreateIngestionRequest(collection="notes", connection_id=connection)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "CreateIngestion", request, scopes=("sources",))
    assert details(caught.value)[0] == "SCOPE_MISSING"


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({}, "connection_id", "INVALID_ARGUMENT"),
        ({"connection_id": "x"}, None, "CONNECTION_NOT_FOUND"),
        ({"temporary_token": "good"}, "kind", "INVALID_ARGUMENT"),
        ({"temporary_token": "good", "kind": "nothing"}, "kind", "SOURCE_UNKNOWN"),
        ({"temporary_token": "good\n", "kind": "memory"}, "temporary_token", "INVALID_ARGUMENT"),
        ({"temporary_token": "x" * 9000, "kind": "memory"}, "temporary_token", "INVALID_ARGUMENT"),
        ({"temporary_token": "good", "kind": "memory", "collection": "other"}, None, "COLLECTION_NOT_FOUND"),
        (
            {"temporary_token": "good", "kind": "memory", "schedule": pb.Schedule(cron="0 3 * * *")},
            "schedule",
            "INVALID_ARGUMENT",
        ),
    ],
)
async def test_bad_requests_are_refused_by_the_field(
    rig: Rig, fields: dict[str, Any], field: str | None, reason: str
) -> None:
    request = pb.CreateIngestionRequest(**{"collection": "notes", **fields})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "CreateIngestion", request)
    assert details(caught.value) == (reason, [field] if field else [])
    assert sql(rig, "select count(*) from ingestions")[0][0] == 0


async def test_settings_name_no_other_host_than_the_connections(rig: Rig) -> None:
    """E3: a kept credential goes where it was given for, whatever an ingestion's own settings say."""
    request = pb.CreateIngestionRequest(collection="notes", connection_id=await connect(rig))
    request.settings.update({"host": "evil.example"})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "CreateIngestion", request)
    assert details(caught.value) == ("HOST_NOT_CONNECTED", ["settings"])
    request.settings.update({"host": "memory.example", "nothing": 1})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "CreateIngestion", request)
    assert details(caught.value)[1] == ["settings.nothing"]
