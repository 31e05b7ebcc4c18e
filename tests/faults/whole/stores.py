"""Faults of what a vectorstore keeps its data in, PostgreSQL and S3: slow, cut off, killed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.vectors.oracle import Oracle, content_of
from tests.faults.vectors.rig import running_rig
from tests.faults.whole.row import Row
from tests.postgres import running_postgres
from tests.seaweed import running_seaweed
from tests.tcp_proxy import TcpProxy, running_proxy

_FROZEN_S = 3.0
_APART_S = 1.0
_RECOVERS_WITHIN_S = 90.0
_WRITERS = 2


async def of_database(folder: Path, rounds: int) -> AsyncIterator[Row]:
    """PostgreSQL, in which every write is acknowledged."""
    with running_postgres(folder) as server, running_proxy(server.port) as proxy:
        faults = [
            ("frozen for 3 s", partial(_frozen, proxy)),
            ("connections cut", partial(_cut, proxy)),
            ("killed, started", partial(_started, server.kill, server.start)),
        ]
        for number, (fault, strike) in enumerate(faults):
            url = server.make_database(f"faults{number}").replace(f":{server.port}/", f":{proxy.port}/")
            row = Row(fault, "PostgreSQL")
            yield await _load(row, folder / f"rig{number}", {"database_url": url}, proxy, strike, rounds)


async def of_objects(folder: Path, rounds: int) -> AsyncIterator[Row]:
    """S3, where snapshots go: writes do not wait for it."""
    with running_seaweed(folder) as server, running_proxy(server.port) as proxy:
        faults = [
            ("frozen for 3 s", partial(_frozen, proxy)),
            ("connections cut", partial(_cut, proxy)),
            ("killed, started", partial(_started, server.stop, server.start)),
        ]
        for number, (fault, strike) in enumerate(faults):
            url = server.url(server.make_bucket(f"faults{number}"))
            url = url.replace(f":{server.port}", f":{proxy.port}")
            row = Row(fault, "S3")
            yield await _load(row, folder / f"rig{number}", {"objects_url": url}, proxy, strike, rounds)


async def _load(
    row: Row,
    folder: Path,
    settings: dict[str, Any],
    proxy: TcpProxy,
    strike: Callable[[], Awaitable[None]],
    rounds: int,
) -> Row:
    """A fault again and again under writers that go on, then everything compared, also after a kill."""
    carried = proxy.carried
    async with running_rig(folder) as rig:
        rig.settings = {"snapshot_log_bytes": 20_000, **settings}
        await rig.begin()
        oracles = [Oracle(rig, f"w{number}") for number in range(_WRITERS)]
        stop = asyncio.Event()
        for oracle in oracles:
            assert await oracle.create(oracle.only), oracle.refusals
        writers = [asyncio.create_task(_write(oracle, stop)) for oracle in oracles]
        for _ in range(rounds):
            await asyncio.sleep(_APART_S)
            await strike()
            before = [oracle.acknowledged for oracle in oracles]
            started = time.monotonic()
            while any(oracle.acknowledged <= count for oracle, count in zip(oracles, before, strict=True)):
                if time.monotonic() - started > _RECOVERS_WITHIN_S:
                    row.wrong.append(f"does not recover: {oracles[0].refusals[-1:]}")
                    break
                await asyncio.sleep(0.02)
            row.recovery_s = max(row.recovery_s, time.monotonic() - started)
            row.times += 1
        stop.set()
        await asyncio.gather(*writers)
        for again in (False, True):
            if again:
                await rig.kill()
                await rig.begin()
            for oracle in oracles:
                verdict = await oracle.compare()
                row.lost += verdict.notes[: verdict.lost]
                row.wrong += verdict.notes[: verdict.wrong]
        if proxy.carried == carried:
            row.wrong.append(f"nothing went to {row.where} by the way that fails")
        row.acknowledged = sum(oracle.acknowledged for oracle in oracles)
        row.refused = sum(len(oracle.refusals) for oracle in oracles)
    return row


async def _write(oracle: Oracle, stop: asyncio.Event) -> None:
    """Writes until told to stop; where a call's fate is not known, looks first."""
    chance = random.Random(oracle.only)
    while not stop.is_set():
        first = chance.randrange(200)
        done = await oracle.upsert(oracle.only, content_of(range(first, first + 20), f"{chance.random()}"))
        while not done and not stop.is_set():
            await asyncio.sleep(0.05)
            done = await oracle.settle()


async def _frozen(proxy: TcpProxy) -> None:
    proxy.freeze()
    await asyncio.sleep(_FROZEN_S)
    proxy.thaw()


async def _cut(proxy: TcpProxy) -> None:
    proxy.cut()


async def _started(stop: Callable[[], None], start: Callable[[], None]) -> None:
    await asyncio.to_thread(stop)
    await asyncio.to_thread(start)
