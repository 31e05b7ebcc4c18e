"""Under whose word an upload goes on: the call's own context, and a permit once that is about to run out.

A context lives for seconds. Most documents are searchable before that, and for them a permit would be two
durable writes at keyvault for nothing. So one is asked for only when half of the context's life is over,
while keyvault still takes the context for it, or when the work that is ahead may take longer than what is
left of the context. This module must never let work go on under a context that may run out in the middle
of a commit.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol

import structlog

from services.common import ids
from services.common.clock import Clock
from services.common.context import Caller, acting_as, current_caller
from services.common.errors import SealcombError

# Enough for a short commit, which has deadlines of its own, and for asking keyvault.
LEFT_S_MIN = 15.0

_log = structlog.get_logger("uploads")


class Permits(Protocol):
    """Permits for work that outlives its call."""

    async def issue_permit(self, job_id: str, ttl_s: int) -> str:
        """A permit of the current caller."""

    async def end_permit(self, job_id: str) -> None:
        """Ends it."""


class Standing:
    """The right of one upload to go on. Use as a context manager, within the call."""

    def __init__(
        self,
        permits: Permits,
        clock: Clock,
        ttl_s: int,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]],
    ) -> None:
        """`spawn` runs what outlives the block, such as ending the permit."""
        self._permits = permits
        self._clock = clock
        self._ttl_s = ttl_s
        self._spawn = spawn
        self._own = current_caller()
        self._job_id = ids.new_id()
        self._asking: asyncio.Task[Caller] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def caller(self, *, work_s: float = 0.0) -> Caller:
        """Whom to act as from now on, for work that may take so long. Raises what keyvault answers."""
        if self._clock.now_s() + LEFT_S_MIN + work_s > self._own.context.expires_s:
            self._ask()
        if self._asking is None:
            return self._own
        return await asyncio.shield(self._asking)

    def __enter__(self) -> Standing:
        left_s = self._own.context.expires_s - LEFT_S_MIN - self._clock.now_s()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._spawn(self._end(self._asking))

    def _ask(self) -> None:
        if self._asking is None:
            self._asking = asyncio.create_task(self._issue())

    async def _issue(self) -> Caller:
        with acting_as(self._own):
            permit = await self._permits.issue_permit(self._job_id, self._ttl_s)
        return Caller(dataclasses.replace(self._own.context, job_id=self._job_id), permit)

    async def _end(self, asking: asyncio.Task[Caller]) -> None:
        try:
            with acting_as(await asking):
                await self._permits.end_permit(self._job_id)
        except SealcombError as error:
            # It was not given, or it ends by itself soon.
            _log.info("a permit was not ended", job_id=self._job_id, reason=error.reason)
