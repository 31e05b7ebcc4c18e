"""A disk that is really full, with room made again: what is said, what goes on, what comes back by itself."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.vectors.oracle import Oracle, Verdict, content_of
from tests.faults.vectors.rig import Rig
from tests.faults.vectors.sweep import Row

_NAME = "things"
_SIZE = "6m"
_WITHIN_S = 30.0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small file system of its own on a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def full_disk(rig: Rig, rounds: int) -> Row:
    """Fills the disk, looks, makes room, looks again."""
    row = Row("disk full", "data folder")
    rig.settings = {"snapshot_log_bytes": 20_000, "erase_after_s": 600.0}
    with small_disk(rig.data):
        await rig.begin()
        oracle = Oracle(rig)
        assert await oracle.create(_NAME)
        assert await oracle.upsert(_NAME, content_of(range(50)))
        for number in range(rounds):
            await _once(rig, oracle, row, f"round {number}")
            row.times += 1
        await rig.kill()
        await rig.begin()
        row.add(await oracle.compare(), "after a restart")
        await rig.kill()
    row.acknowledged = oracle.acknowledged
    return row


async def _once(rig: Rig, oracle: Oracle, row: Row, context: str) -> None:
    refused_before = await rig.metric("sealcomb_storage_refusals_total")
    ballast = rig.data / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    oracle.refusals.clear()
    salt, number = context, 0
    while await oracle.upsert(_NAME, content_of(range(number * 20, number * 20 + 20), salt)):
        number = (number + 1) % 10
    said = {
        f"refused as {oracle.refusals}": oracle.refusals == ["RESOURCE_EXHAUSTED STORAGE_FULL"],
        "the metric": await rig.metric("sealcomb_storage_refusals_total") > refused_before,
        "the gauge": await rig.metric("sealcomb_storage_writable") == 0,
        "health of writes": not await rig.health("writes"),
        "health of the whole": await rig.health(""),
    }
    row.add(_wrong(said), context)
    # What was refused is not there, everything else is.
    row.add(await oracle.compare(), context)
    ballast.unlink()
    started = time.monotonic()
    while not await oracle.upsert(_NAME, content_of(range(5), salt)):
        if time.monotonic() - started > _WITHIN_S:
            row.add(Verdict(wrong=1, notes=[f"stays refused: {oracle.refusals[-1]}"]), context)
            return
        await asyncio.sleep(0.05)
    row.recovery_s = max(row.recovery_s, time.monotonic() - started)
    row.add(await oracle.compare(), context)
    # Health is told of it just after the answer.
    for _ in range(100):
        if await rig.health("writes"):
            break
        await asyncio.sleep(0.05)
    row.add(
        _wrong(
            {
                "health again": await rig.health("writes"),
                "the gauge again": await rig.metric("sealcomb_storage_writable") == 1,
            }
        ),
        context,
    )


def _wrong(said: dict[str, bool]) -> Verdict:
    missing = [name for name, right in said.items() if not right]
    return Verdict(wrong=len(missing), notes=[f"not as it should be: {name}" for name in missing])
