"""Listings over several runs: broken off, begun anew, and now and then from the beginning."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sealcomb.v1 import ingestion_service_pb2 as pb
from services.ingest.sources.contract import ItemUnfit, SourceAnswerInvalid, SourceDenied
from tests.ingest.jobs.rig import call, connect, create, ended, sql, texts
from tests.ingest.memory_source import MemorySourceType
from tests.ingest.rig import Rig, running


@pytest.fixture
def source() -> MemorySourceType:
    """A source of nine things, listed three at a time."""
    made = MemorySourceType()
    for number in range(9):
        made.put(f"item {number}", f"Text of item {number}.")
    return made


@pytest.fixture
async def rig(tmp_path: Path, source: MemorySourceType) -> AsyncIterator[Rig]:
    """A running ingest with that source and a collection."""
    async with running(tmp_path, source_types=[source], ingestion_lease_s=2, extract_workers=1) as made:
        made.collection()
        yield made


async def test_a_listing_that_broke_off_is_begun_anew_by_the_next_run(
    rig: Rig, source: MemorySourceType
) -> None:
    """E29: what the earlier run named before it broke off is not taken for gone."""

    def break_off(number: int) -> None:
        if number == 2:
            raise SourceAnswerInvalid("no JSON")

    source.before_batch = break_off
    begun = await create(rig, connection_id=await connect(rig))
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_FAILED, "SOURCE_ANSWER_INVALID")
    source.before_batch = None
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    done = await ended(rig, begun.id, run=2)
    assert done.state == pb.INGESTION_STATE_SUCCEEDED
    assert (done.counts.found, done.counts.removed) == (9, 0)
    assert len(texts(rig)) == 9


async def test_a_removal_that_a_source_forgot_to_tell_is_noticed_by_a_full_listing(
    rig: Rig, source: MemorySourceType
) -> None:
    """E29: an incremental source is listed from the beginning once a week, whatever it says."""
    source.incremental = True
    schedule = pb.Schedule(cron="0 3 * * *")
    begun = await create(rig, connection_id=await connect(rig), schedule=schedule)
    await ended(rig, begun.id)
    del source.things["item 4"]
    sql(rig, "update ingestions set next_run_ms = 1")
    await ended(rig, begun.id, run=2)
    # The twin: from its cursor alone it is never noticed.
    assert "item 4.txt" in texts(rig)
    assert None not in source.cursors[1:]
    sql(rig, "update ingestions set next_run_ms = 1, full_ms = full_ms - 7 * 86400 * 1000")
    done = await ended(rig, begun.id, run=3)
    assert source.cursors[-1] is None
    assert (done.counts.removed, done.counts.unchanged) == (1, 8)
    assert "item 4.txt" not in texts(rig)
    # What had not changed was not fetched again, and the next listing is one of changes again.
    assert len(source.fetches()) == 9
    sql(rig, "update ingestions set next_run_ms = 1")
    await ended(rig, begun.id, run=4)
    assert source.cursors[-1] is not None


async def test_a_renamed_a_moved_and_a_forbidden_item(rig: Rig, source: MemorySourceType) -> None:
    """E29: a name and an address follow the item; a permission is honoured although nothing else changed."""
    source.things["item 8"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    ids = {r.name: r.id for r in records(rig)}
    source.put("item 0", "Text of item 0.", name="renamed.txt", version="1")
    source.put("item 1", "Text of item 1.", url="https://memory.example/moved/1", version="1")
    source.put("item 2", "Text of item 2.", principals=("ann", "bob"), version="1")
    source.put("item 3", "Text of item 3.", version="2")
    source.things["item 3"].error = SourceDenied("no longer yours")
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    await ended(rig, begun.id, run=2)
    now = {r.id: r for r in records(rig)}
    assert now[ids["item 0.txt"]].name == "renamed.txt"
    assert now[ids["item 1.txt"]].metadata["url"] == "https://memory.example/moved/1"
    assert list(now[ids["item 2.txt"]].principals) == ["ann", "bob"]
    assert ids["item 3.txt"] not in now
    source.put("item 2", "Text of item 2.", principals=("bob",), version="1")
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    await ended(rig, begun.id, run=3)
    now = {r.id: r for r in records(rig)}
    assert list(now[ids["item 2.txt"]].principals) == ["bob"]


def records(rig: Rig) -> list[Any]:
    """The records of the one collection."""
    return list(next(iter(rig.vectorstore.collections.values())).records.values())
