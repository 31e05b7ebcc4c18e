"""kill -9 at moments that chance decides, while several callers write."""

from __future__ import annotations

import asyncio
import random
import time

from tests.faults.vectors.oracle import Oracle, content_of
from tests.faults.vectors.rig import Rig
from tests.faults.vectors.sweep import Row

_WRITERS = 3
_IDS = 300
_LONGEST_S = 0.3


async def random_kills(rig: Rig, cycles: int, seed: int = 20261124) -> Row:
    """Kills a life after another; each writer has a collection of its own, with snapshots all the time."""
    row = Row("kill -9", f"at random, {_WRITERS} writers")
    rig.settings = {"snapshot_log_bytes": 20_000, "erase_after_s": 0.05}
    chance = random.Random(seed)
    oracles = [Oracle(rig, f"w{number}") for number in range(_WRITERS)]
    await rig.begin()
    for cycle in range(cycles):
        writers = [
            asyncio.create_task(_write(oracle, f"w{number}", random.Random(chance.random())))
            for number, oracle in enumerate(oracles)
        ]
        await asyncio.sleep(chance.uniform(0.0, _LONGEST_S))
        rig.strike()
        await asyncio.gather(*writers)
        await rig.ended()
        started = time.monotonic()
        await rig.begin()
        for oracle in oracles:
            row.add(await oracle.compare(), f"cycle {cycle}")
        row.recovery_s = max(row.recovery_s, time.monotonic() - started)
        row.times += 1
    await rig.kill()
    row.acknowledged = sum(oracle.acknowledged for oracle in oracles)
    return row


async def _write(oracle: Oracle, name: str, chance: random.Random) -> None:
    """Writes until a call fails."""
    if name not in oracle.possible[0] and not await oracle.create(name):
        return
    while True:
        first = chance.randrange(_IDS)
        ids = range(first, first + chance.randint(1, 40))
        what = chance.random()
        if what < 0.02:
            done = await oracle.drop(name) and await oracle.create(name)
        elif what < 0.3:
            done = await oracle.delete(name, ids)
        else:
            done = await oracle.upsert(name, content_of(ids, f"{chance.random()}"))
        if not done:
            return
