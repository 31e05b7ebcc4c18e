"""`make faults-vectors`: a vectorstore killed, its disk failing, at every durable system call; one table.

    python -m tests.faults.vectors [--cycles 1000] [--most 40] [--stages "append; tails; random"]

Of calls alike (the pages of one log) each stage takes at most `--most`, evenly spread, the first and the
last among them. Exits 1 where something acknowledged is lost, an answer is wrong, or a fault was never met.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.vectors.full_disk import full_disk
from tests.faults.vectors.random_kills import random_kills
from tests.faults.vectors.rig import Rig, running_rig
from tests.faults.vectors.stages import STAGES, Stage
from tests.faults.vectors.strace import spread
from tests.faults.vectors.sweep import Row, Sweep
from tests.faults.vectors.tails import tails

_HASTY_KILLS = 3


@asynccontextmanager
async def _rig() -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="sealcomb-faults-") as folder:
        async with running_rig(Path(folder) / "rig") as rig:
            yield rig


async def _stage(stage: Stage, most: int) -> AsyncIterator[Row]:
    async with _rig() as rig:
        sweep = Sweep(rig, stage)
        await sweep.prepare()
        chosen = spread(sweep.sites, most)
        for rows in (
            await sweep.kills(chosen),
            await sweep.errors(chosen, "EIO"),
            await sweep.errors(chosen, "ENOSPC"),
        ):
            for row in rows:
                yield row


async def hasty(kills: int) -> Row:
    """The twin: the same kills of a vectorstore that answers before its commit."""
    stage = next(stage for stage in STAGES if stage.name == "append")
    async with _rig() as rig:
        sweep = Sweep(rig, stage)
        await sweep.prepare()
        rig.hasty = True
        total = Row("kill -9", "twin: answers before the commit")
        for row in await sweep.kills(sweep.sites[:kills]):
            total.times += row.times
            total.acknowledged += row.acknowledged
            total.lost += row.lost
            total.wrong += row.wrong
            total.recovery_s = max(total.recovery_s, row.recovery_s)
        return total


async def _run(cycles: int, most: int, names: list[str]) -> int:
    print(f"{'fault':14} {'where':62} {'times':>6} {'acked':>7} {'lost':>5} {'wrong':>5} {'recovery s':>10}")
    bad = 0
    for stage in STAGES:
        if not names or stage.name in names:
            async for row in _stage(stage, most):
                bad += say(row)
    if not names or "tails" in names:
        with tempfile.TemporaryDirectory(prefix="sealcomb-faults-") as folder:
            for row in await tails(Path(folder), stride=1):
                bad += say(row)
    if not names or "disk" in names:
        async with _rig() as rig:
            bad += say(await full_disk(rig, 20))
    if not names or "random" in names:
        async with _rig() as rig:
            bad += say(await random_kills(rig, cycles))
    twin = await hasty(_HASTY_KILLS)
    say(twin)
    return int(bad > 0 or not twin.lost)


def say(row: Row) -> bool:
    """Prints a row; whether it makes the exit code 1."""
    figures = f"{row.times:6} {row.acknowledged:7} {row.lost:5} {row.wrong:5} {row.recovery_s:10.2f}"
    missed = f"   not met {row.not_met}" if row.not_met else ""
    print(f"{row.fault:14} {row.where:62} {figures}{missed}", flush=True)
    for note in row.notes[:5] if "twin" not in row.where else []:
        print(f"    {note}", flush=True)
    return bool(row.lost + row.wrong + row.not_met) or not row.times


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="make faults-vectors", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--cycles", type=int, default=1000, help="kills at random")
    parser.add_argument("--most", type=int, default=40, help="faults for calls alike in a stage")
    parser.add_argument(
        "--stages", default="", help="stages, tails, disk and random, separated by semicolons; all"
    )
    chosen = parser.parse_args()
    names = [name.strip() for name in chosen.stages.split(";") if name.strip()]
    return asyncio.run(_run(chosen.cycles, chosen.most, names))


if __name__ == "__main__":
    sys.exit(main())
