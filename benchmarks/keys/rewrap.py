"""Rotation: 10,000 accounts as fast as keyvault does it, and one account with many data keys."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.keys.table import Row, bounded, times
from services.common import ids
from services.keyvault.kms.file import FileKms
from tests.keyvault.rig import Rig

_ACCOUNTS = 10_000
_DATA_KEYS = 2
_LARGE = 10_000
_ALONE = 200
_BOUND_S = 10.0
# As many callers as the store has in one commit.
_AT_ONCE = 64


async def rows() -> list[Row]:
    """How long the rotations take, and how long others' releases take meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder) / "keyvault.db", FileKms(os.urandom(32)))
        try:
            return [*await _many(rig), *await _large(rig)]
        finally:
            rig.close()


async def _many(rig: Rig) -> list[Row]:
    accounts = [ids.new_id() for _ in range(_ACCOUNTS)]

    async def make(account: str) -> None:
        await rig.vault.provision(rig.asker(account, "gateway"))
        for _ in range(_DATA_KEYS):
            await rig.releases.release(rig.asker(account), ids.new_id(), "collection")

    async def rotate(account: str) -> None:
        await rig.moves.rotate(rig.asker(account))

    await _all(make, accounts)
    started, worked = time.perf_counter(), time.process_time()
    await _all(rotate, accounts)
    # The bound is on processor time, which the machine's other work does not change.
    seconds, processor_s = time.perf_counter() - started, time.process_time() - worked
    under_old = rig.sql("select count(*) from data_keys where version < 2")[0][0]
    figures = f"{seconds:6.1f} s, {processor_s:.1f} s of processor time"
    row = Row("file: rotate 10,000 accounts of 2 data keys", _ACCOUNTS, figures)
    left = Row("... data keys under the old keys after it", under_old, "")
    return [
        *await _alone(rig, accounts),
        bounded(row, processor_s, _BOUND_S, "s of it"),
        bounded(left, under_old, 0, ""),
    ]


async def _alone(rig: Rig, accounts: Sequence[str]) -> list[Row]:
    """The same one after another: what their being together saves."""
    waits: list[float] = []
    for account in accounts[:_ALONE]:
        started = time.perf_counter()
        await rig.moves.rotate(rig.asker(account))
        waits.append(time.perf_counter() - started)
    return [times("file: rotate one account of 2 data keys, alone", waits)]


async def _large(rig: Rig) -> list[Row]:
    large, other = await rig.account(), await rig.account()
    resource = ids.new_id()

    async def make(resource: str) -> None:
        await rig.releases.release(rig.asker(large), resource, "collection")

    await _all(make, [ids.new_id() for _ in range(_LARGE)])
    waits: list[float] = []
    started = time.perf_counter()
    rotation = asyncio.create_task(rig.moves.rotate(rig.asker(large)))
    while not rotation.done():
        asked = time.perf_counter()
        await rig.releases.release(rig.asker(other), resource, "collection")
        waits.append(time.perf_counter() - asked)
        await asyncio.sleep(0.002)
    await rotation
    seconds = time.perf_counter() - started
    return [
        Row("file: rotate one account of 10,000 data keys", 1, f"{seconds:6.1f} s"),
        times("... another account's release meanwhile", waits),
    ]


async def _all(work: Callable[[str], Awaitable[None]], names: Sequence[str]) -> None:
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await work(name)

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
