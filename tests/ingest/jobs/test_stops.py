"""What stops an ingestion: the key, the account, the collection; and schedules, which begin them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.internal.v1 import keyvault_service_pb2 as kv
from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb.v1 import ingestion_service_pb2_grpc as stubs
from tests.ingest.jobs.rig import call, connect, create, ended, get, sql, texts
from tests.ingest.memory_source import MemorySourceType
from tests.ingest.rig import ACCOUNT, Rig, details, eventually, running

WATCH = "/sealcomb.v1.IngestionService/WatchIngestion"


@pytest.fixture
def source() -> MemorySourceType:
    """A source that is slow."""
    made = MemorySourceType()
    for number in range(30):
        made.put(f"item {number}", f"Text of item {number}.")

    async def slowly(_item: object) -> None:
        await asyncio.sleep(0.1)

    made.before_fetch = slowly
    return made


@pytest.fixture
async def rig(tmp_path: Path, source: MemorySourceType) -> AsyncIterator[Rig]:
    """A running ingest with that source and a collection."""
    async with running(tmp_path, source_types=[source], ingestion_lease_s=1, extract_workers=1) as made:
        made.collection()
        yield made


async def _under_way(rig: Rig, source: MemorySourceType) -> pb.Ingestion:
    begun = await create(rig, connection_id=await connect(rig))
    await eventually(lambda: len(source.fetches()) > 2)
    return begun


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (kv.KEY_EVENT_DISABLED, "KEY_DISABLED"),
        (kv.KEY_EVENT_SUSPENDED, "ACCOUNT_SUSPENDED"),
    ],
)
async def test_a_disabled_key_or_a_suspended_account_stops_the_work(
    rig: Rig, source: MemorySourceType, event: kv.KeyEvent.ValueType, reason: str
) -> None:
    """B16, A1: within a second nothing is fetched any more; it does not come back by itself."""
    begun = await _under_way(rig, source)
    where = rig.keyvault.disabled if reason == "KEY_DISABLED" else rig.keyvault.suspended
    where.add(ACCOUNT)
    rig.keyvault.push(event, ACCOUNT)
    await asyncio.sleep(1.0)
    fetched = len(source.fetches())
    await asyncio.sleep(0.5)
    assert len(source.fetches()) == fetched
    where.discard(ACCOUNT)
    await asyncio.sleep(0.5)
    assert len(source.fetches()) == fetched
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, reason)
    source.before_fetch = None
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    assert (await ended(rig, begun.id, run=2)).state == pb.INGESTION_STATE_SUCCEEDED
    assert len(texts(rig)) == 30


async def test_work_that_nobody_stops_goes_on(rig: Rig, source: MemorySourceType) -> None:
    """The twin: an event of another account changes nothing."""
    await _under_way(rig, source)
    rig.keyvault.push(kv.KEY_EVENT_DISABLED, "another account")
    fetched = len(source.fetches())
    await asyncio.sleep(1.0)
    assert len(source.fetches()) > fetched


async def test_an_ended_grant_stops_the_work(rig: Rig, source: MemorySourceType) -> None:
    """What keyvault ended cannot be renewed, wherever the row says otherwise."""
    begun = await _under_way(rig, source)
    for job in rig.keyvault.permits:
        rig.keyvault.permits[job] = False
    rig.keyvault.push(kv.KEY_EVENT_DISABLED, ACCOUNT)
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "PERMIT_ENDED")


async def test_a_destroyed_collection_takes_its_ingestions_along(rig: Rig, source: MemorySourceType) -> None:
    begun = await _under_way(rig, source)
    collection = rig.vectorstore.collections.pop((ACCOUNT, "notes"))
    rig.keyvault.destroyed.add(collection.id)
    rig.keyvault.push(kv.KEY_EVENT_RESOURCE_DESTROYED, ACCOUNT, collection.id)
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "COLLECTION_NOT_FOUND")
    assert (done.collection, dict(done.settings)) == ("", {})
    await eventually(lambda: sql(rig, "select count(*) from ingestion_items")[0][0] == 0)


async def test_a_destroyed_account_leaves_no_rows(rig: Rig, source: MemorySourceType) -> None:
    """B16: connections, ingestions and items go with the account."""
    await _under_way(rig, source)
    rig.keyvault.disabled.add(ACCOUNT)
    rig.keyvault.push(kv.KEY_EVENT_ACCOUNT_DESTROYED, ACCOUNT)
    tables = ("connections", "ingestions", "ingestion_items")
    await eventually(lambda: all(sql(rig, f"select count(*) from {table}")[0][0] == 0 for table in tables))
    fetched = len(source.fetches())
    await asyncio.sleep(0.5)
    assert len(source.fetches()) == fetched


async def test_a_watch_ends_when_keys_are_dropped(rig: Rig, source: MemorySourceType) -> None:
    """B16: a stream that was admitted before is not believed for ever."""
    begun = await _under_way(rig, source)
    async with rig.channel() as channel:
        stream = stubs.IngestionServiceStub(channel).WatchIngestion(
            pb.WatchIngestionRequest(id=begun.id),
            metadata=rig.metadata(WATCH, scopes=("sources",)),
            timeout=20,
        )
        await stream.read()
        rig.keyvault.push(kv.KEY_EVENT_SUSPENDED, ACCOUNT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(_read_on(stream), 2)
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_a_schedule_runs_again_and_again(rig: Rig, source: MemorySourceType) -> None:
    source.before_fetch = None
    schedule = pb.Schedule(cron="0 3 * * mon-fri", time_zone="Europe/Berlin")
    begun = await create(rig, connection_id=await connect(rig), schedule=schedule)
    done = await ended(rig, begun.id)
    assert done.state == pb.INGESTION_STATE_SUCCEEDED
    assert done.schedule == schedule
    assert done.next_run_time.seconds > done.finish_time.seconds
    # Its grant goes on.
    assert any(rig.keyvault.permits.values())
    source.put("item 0", "Text of item 0, changed.")
    del source.things["item 1"]
    sql(rig, "update ingestions set next_run_ms = 1")
    done = await ended(rig, begun.id, run=2)
    assert (done.counts.indexed, done.counts.unchanged, done.counts.removed) == (1, 28, 1)
    assert len(texts(rig)) == 29
    assert done.next_run_time.seconds > 0
    await call(rig, "CancelIngestion", pb.CancelIngestionRequest(id=begun.id))
    assert not (await get(rig, begun.id)).HasField("next_run_time")
    assert not any(rig.keyvault.permits.values())


async def test_a_schedule_whose_account_is_suspended_has_ended(rig: Rig, source: MemorySourceType) -> None:
    """B16: the next run is refused, and there is none after it until somebody says so."""
    source.before_fetch = None
    begun = await create(rig, connection_id=await connect(rig), schedule=pb.Schedule(cron="0 3 * * *"))
    await ended(rig, begun.id)
    rig.keyvault.suspended.add(ACCOUNT)
    sql(rig, "update ingestions set next_run_ms = 1")
    await eventually(lambda: bool(sql(rig, "select 1 from ingestions where reason = 'ACCOUNT_SUSPENDED'")))
    assert sql(rig, "select state, next_run_ms from ingestions") == [("failed", None)]


@pytest.mark.parametrize(
    ("cron", "zone", "field"),
    [
        ("* * * * *", "", "schedule.cron"),
        ("0 3 * *", "", "schedule.cron"),
        ("0 25 * * *", "", "schedule.cron"),
        ("0 3 31 2 *", "", "schedule.cron"),
        ("0 3 * * *", "../etc/passwd", "schedule.time_zone"),
        ("0 3 * * *", "Mars/Olympus", "schedule.time_zone"),
    ],
)
async def test_schedules_that_mean_nothing_are_refused(rig: Rig, cron: str, zone: str, field: str) -> None:
    connection = await connect(rig)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(rig, connection_id=connection, schedule=pb.Schedule(cron=cron, time_zone=zone))
    assert details(caught.value)[1] == [field]


async def _read_on(stream: Any) -> None:
    while True:
        await stream.read()
