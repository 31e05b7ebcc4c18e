"""Two ingest processes share a PostgreSQL and are killed in turn: every item is there once, and new."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from pathlib import Path

from sealcomb.v1 import ingestion_service_pb2 as pb
from tests.ingest.jobs.rig import call, connect, create, ended, sql, texts
from tests.ingest.jobs.test_kill import Lives, write
from tests.ingest.rig import eventually, surroundings
from tests.postgres import Postgres

COLLECTIONS = ("one", "two", "three")
ITEMS = 16


async def test_two_processes_that_are_killed_in_turn_leave_each_item_once_and_new(
    tmp_path: Path, postgres: Postgres
) -> None:
    """E27, F4: eight kills while both work (SEALCOMB_TEST_KILLS for more)."""
    chance = random.Random(9)
    things = tmp_path / "things.json"
    wanted = write(things, 1, range(ITEMS))
    database_url = postgres.make_database(f"i{secrets.token_hex(6)}")
    async with surroundings(
        tmp_path, database_url=database_url, ingestion_lease_s=0.4, extract_workers=1, ingestion_runs=1
    ) as rig:
        for name in COLLECTIONS:
            rig.collection(name)
        lives = [Lives(rig, things), Lives(rig, things)]
        try:
            for life in lives:
                await life.begin()
            begun = [
                (await create(rig, collection=name, connection_id=await connect(rig))).id
                for name in COLLECTIONS
            ]
            # Before anybody dies, both have work.
            at_work = "select count(distinct holder) from ingestions where state = 'running'"
            await eventually(lambda: sql(rig, at_work)[0][0] == 2, within_s=60)
            for _ in range(int(os.environ.get("SEALCOMB_TEST_KILLS", "8"))):
                await asyncio.sleep(chance.uniform(0.05, 0.5))
                life = chance.choice(lives)
                life.kill()
                await life.begin()
            for name, id_ in zip(COLLECTIONS, begun, strict=True):
                done = await ended(rig, id_, within_s=60)
                if done.state != pb.INGESTION_STATE_SUCCEEDED:
                    # An item that happened to be in work at three kills was set aside; that is all.
                    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=id_))
                    done = await ended(rig, id_, run=done.run + 1, within_s=60)
                assert done.state == pb.INGESTION_STATE_SUCCEEDED
                assert texts(rig, name) == wanted
            records = [found.records for found in rig.vectorstore.collections.values()]
            named = {record.object_key for found in records for record in found.values()}
            objects = set(rig.objects)
            assert named <= objects
            unsettled = {row[0] for row in sql(rig, "select object_key from unsettled_originals")}
            assert objects - named <= unsettled | {key for key in objects if "/.put-" in key}
        finally:
            for life in lives:
                life.close()
