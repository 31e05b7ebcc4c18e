"""Ingest is killed wherever it happens to be: every item is there once, in its newest version."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sealcomb.v1 import ingestion_service_pb2 as pb
from tests.ingest.jobs.rig import ENDED, call, connect, create, ended, get, sql, texts
from tests.ingest.rig import Rig, surroundings

ROOT = Path(__file__).resolve().parents[3]
ITEMS = 30


class Lives:
    """The process that begins lives, and the one that lives now."""

    def __init__(
        self,
        rig: Rig,
        wish: Path | str,
        *,
        module: str = "tests.ingest.jobs.killable",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._rig = rig
        settings = rig.settings.model_dump_json()
        self._errors = (rig.folder / "stderr.txt").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, settings, str(wish)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((".", "protos", "client"))}
            | dict(environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self.pid = 0

    async def begin(self) -> None:
        """Begins a life; returns once it serves."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("go\n")
        stdin.flush()
        line = await asyncio.to_thread(stdout.readline)
        assert line, (self._rig.folder / "stderr.txt").read_text()
        self.pid, self._rig.port = map(int, line.split())

    def kill(self) -> None:
        """Ends it without a word."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends all of it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


@asynccontextmanager
async def lives(folder: Path, things: Path) -> AsyncIterator[tuple[Rig, Lives]]:
    """The fakes, and lives of ingest between them."""
    async with surroundings(folder, ingestion_lease_s=0.4, extract_workers=1) as rig:
        rig.collection()
        made = Lives(rig, things)
        try:
            yield rig, made
        finally:
            made.close()


def write(things: Path, version: int, changed: range) -> dict[str, str]:
    """Changes some things; what all of them say afterwards, by name."""
    now = json.loads(things.read_text()) if things.exists() else {}
    for number in changed:
        now[f"i{number:02d}"] = [str(version), f"Item {number} as of version {version}."]
    things.with_suffix(".new").write_text(json.dumps(now))
    things.with_suffix(".new").replace(things)
    return {f"{id_}.txt": text for id_, (_version, text) in now.items()}


async def test_kills_anywhere_leave_each_item_once_and_new(tmp_path: Path) -> None:
    """E27, F4: thirty kills over several runs (SEALCOMB_TEST_KILLS for more)."""
    chance = random.Random(8)
    things = tmp_path / "things.json"
    wanted = write(things, 1, range(ITEMS))
    async with lives(tmp_path, things) as (rig, life):
        await life.begin()
        begun = await create(rig, connection_id=await connect(rig))
        version = 1
        for _ in range(int(os.environ.get("SEALCOMB_TEST_KILLS", "30"))):
            await asyncio.sleep(chance.uniform(0.02, 0.7))
            found = await get(rig, begun.id)
            if found.state in ENDED:
                # On a slow machine an item may have been killed thrice: set aside, and there again below.
                poisoned = await _failed(rig, begun.id)
                assert {item.reason for item in poisoned} <= {"ITEM_POISON"}
                missing = {item.name for item in poisoned}
                assert texts(rig) == {name: text for name, text in wanted.items() if name not in missing}
                # Sets items that were killed thrice aside for a moment, and brings the changed ones in.
                version += 1
                first = chance.randrange(ITEMS // 2)
                wanted = write(things, version, range(first, first + ITEMS // 2))
                sql(rig, "update ingestions set state = 'failed'")
                await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
                await asyncio.sleep(chance.uniform(0.0, 0.3))
            life.kill()
            await life.begin()
        done = await ended(rig, begun.id, within_s=30)
        if done.state != pb.INGESTION_STATE_SUCCEEDED:
            assert {item.reason for item in await _failed(rig, begun.id)} <= {"ITEM_POISON"}
            await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
            done = await ended(rig, begun.id, run=done.run + 1, within_s=30)
        assert done.state == pb.INGESTION_STATE_SUCCEEDED
        assert texts(rig) == wanted
        records = next(iter(rig.vectorstore.collections.values())).records
        named = {record.object_key for record in records.values()}
        objects = set(rig.objects)
        assert named <= objects
        # What is left over is known, and removed later.
        unsettled = {row[0] for row in sql(rig, "select object_key from unsettled_originals")}
        assert objects - named <= unsettled | {key for key in objects if "/.put-" in key}


async def test_an_item_that_kills_its_worker_is_set_aside(tmp_path: Path) -> None:
    """E26: counted before the work, so that three deaths are enough; all the others are there."""
    things = tmp_path / "things.json"
    write(things, 1, range(4))
    async with lives(tmp_path, things) as (rig, life):
        victim = asyncio.Event()

        async def die() -> None:
            records = next(iter(rig.vectorstore.collections.values())).records
            if any(record.name == "i02.txt" for record in records.values()):
                # The commit never happened, as far as its worker can tell.
                for id_ in [id_ for id_, record in records.items() if record.name == "i02.txt"]:
                    del records[id_]
                victim.set()
                life.kill()
                await asyncio.sleep(5)

        rig.vectorstore.after_put = die
        await life.begin()
        begun = await create(rig, connection_id=await connect(rig))
        for _ in range(3):
            async with asyncio.timeout(15):
                await victim.wait()
            victim.clear()
            await life.begin()
        done = await ended(rig, begun.id)
        assert (done.state, done.counts.failed) == (pb.INGESTION_STATE_PARTIAL, 1)
        assert [item.reason for item in await _failed(rig, begun.id)] == ["ITEM_POISON"]
        assert set(texts(rig)) == {"i00.txt", "i01.txt", "i03.txt"}


async def _failed(rig: Rig, id_: str) -> list[pb.FailedItem]:
    return list((await call(rig, "ListFailedItems", pb.ListFailedItemsRequest(id=id_))).items)
