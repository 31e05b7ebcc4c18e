"""What a vectorstore does durably, a stage at a time: where it begins, and what is done then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.vectors.oracle import Oracle, content_of

_Act = Callable[[Oracle], Awaitable[object]]
# Snapshots only where a stage is about them.
_QUIET = {"snapshot_log_bytes": 1 << 30, "erase_after_s": 600.0}
NAME = "things"
_SNAPSHOT_WITHIN_S = 60.0


@dataclass(frozen=True)
class Stage:
    """A stage: `prepare` runs once and its data is kept, `act` in each life, with a fault somewhere in it."""

    name: str
    prepare: _Act
    act: _Act
    settings: dict[str, Any] = field(default_factory=lambda: dict(_QUIET))
    # Those that `prepare` runs under.
    settings_before: dict[str, Any] = field(default_factory=lambda: dict(_QUIET))
    # Begins with an empty folder; `prepare` is nothing.
    fresh: bool = False
    # With a fault also while it starts, before it serves.
    start: bool = False


async def _some(oracle: Oracle) -> None:
    assert await oracle.create(NAME)
    assert await oracle.upsert(NAME, content_of(range(40)))


async def _create(oracle: Oracle) -> None:
    await oracle.create("new")


async def _append(oracle: Oracle) -> None:
    changed = content_of(range(10), "anew")
    if await oracle.upsert(NAME, content_of(range(40, 45))) and await oracle.upsert(NAME, changed):
        await oracle.delete(NAME, range(5, 15))


async def _before_snapshot(oracle: Oracle) -> None:
    await _some(oracle)
    for first in range(100, 160, 20):
        assert await oracle.upsert(NAME, content_of(range(first, first + 20)))


async def _with_snapshot(oracle: Oracle) -> None:
    await _before_snapshot(oracle)
    async with asyncio.timeout(_SNAPSHOT_WITHIN_S):
        while not await oracle.rig.shortened(NAME, 4):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await oracle.upsert(NAME, content_of(range(600, 603)))


async def _large(oracle: Oracle) -> None:
    await oracle.upsert(NAME, content_of(range(200, 500)))


async def _before_merge(oracle: Oracle) -> None:
    assert await oracle.create(NAME)
    for first in range(0, 7500, 500):
        assert await oracle.upsert(NAME, content_of(range(first, first + 500)))


async def _merge(oracle: Oracle) -> None:
    # Enough for a graph, then enough dead ones for a state without them.
    for first in range(7500, 9000, 500):
        if not await oracle.upsert(NAME, content_of(range(first, first + 500))):
            return
    for first in range(1000, 4000, 500):
        if not await oracle.delete(NAME, range(first, first + 500)):
            return


async def _many_pages(oracle: Oracle) -> None:
    # SQLite folds its own log into the database at a thousand pages.
    for first in range(1000, 1600, 100):
        if not await oracle.upsert(NAME, content_of(range(first, first + 100), text_chars=8000)):
            return


async def _import(oracle: Oracle) -> None:
    await oracle.bring("imported", content_of(range(300)))


async def _drop(oracle: Oracle) -> None:
    await oracle.drop(NAME)


async def _nothing(_oracle: Oracle) -> None:
    return


STAGES = [
    Stage("create", _some, _create),
    Stage("append", _some, _append),
    Stage("snapshot, trim", _before_snapshot, _large, {"snapshot_log_bytes": 20_000}),
    Stage(
        "merge, snapshot, trim",
        _before_merge,
        _merge,
        {"snapshot_log_bytes": 1_100_000, "erase_after_s": 0.1},
    ),
    Stage("checkpoint", _some, _many_pages),
    Stage("import", _some, _import),
    Stage("delete", _with_snapshot, _drop, settings_before={"snapshot_log_bytes": 6_000}),
    Stage("start", _with_snapshot, _nothing, settings_before={"snapshot_log_bytes": 6_000}, start=True),
    Stage("first start", _nothing, _nothing, start=True, fresh=True),
]
