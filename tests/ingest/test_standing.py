"""Under whose word an upload goes on: its own context while that is long enough, a permit otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from services.common import ids
from services.common.context import CallContext, Caller, acting_as
from services.ingest.standing import LEFT_S_MIN, Standing
from tests.keyvault.rig import ManualClock

LIFE_S = 30.0


class Permits:
    """Gives a permit to whoever asks, and remembers it."""

    def __init__(self) -> None:
        self.issued: list[str] = []
        self.ended: list[str] = []

    async def issue_permit(self, job_id: str, ttl_s: int) -> str:
        """A permit."""
        self.issued.append(job_id)
        return "permit"

    async def end_permit(self, job_id: str) -> None:
        """Ends it."""
        self.ended.append(job_id)


async def _word(work_s: float, after_s: float = 0.0) -> tuple[str, Permits]:
    """By whose word work of a length is done, so long after the call began."""
    clock, permits, tasks = ManualClock(1000.0), Permits(), set[asyncio.Task[Any]]()

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        tasks.add(task)
        return task

    context = CallContext("ingest", (), ids.new_id(), "", (), (), "", 0, clock.time_s + LIFE_S, "")
    with acting_as(Caller(context, "context")), Standing(permits, clock, 60, spawn) as standing:
        clock.time_s += after_s
        caller = await standing.caller(work_s=work_s)
    await asyncio.gather(*tasks)
    return caller.text, permits


@pytest.mark.parametrize(("work_s", "after_s"), [(0.0, 0.0), (10.0, 0.0), (0.5, 14.0)])
async def test_what_ends_before_its_context_needs_no_permit(work_s: float, after_s: float) -> None:
    word, permits = await _word(work_s, after_s)
    assert (word, permits.issued) == ("context", [])


@pytest.mark.parametrize(
    ("work_s", "after_s"), [(LIFE_S - LEFT_S_MIN + 0.1, 0.0), (2.0, 14.0), (0.0, 15.1), (600.0, 0.0)]
)
async def test_what_may_outlast_its_context_is_done_under_a_permit_that_ends_with_it(
    work_s: float, after_s: float
) -> None:
    word, permits = await _word(work_s, after_s)
    assert word == "permit"
    assert len(permits.issued) == 1
    assert permits.ended == permits.issued
