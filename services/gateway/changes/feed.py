"""Follows what other policy processes change, so that no session here is older than a few seconds.

The numbered changes are read every half second, and at once when the database pushes that there are
some. Each reading proves the sessions of this process for `BOUND_S`; without a reading they are not
believed, and every call reads its token's row itself or is refused. So a process that the push does
not reach is half a second late, and one that has lost the database refuses within the bound. A
reading counts from the moment in which it began.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import structlog
from prometheus_client import Counter

from services.common.clock import Clock
from services.gateway.changes.store import ACCOUNT, Change, Changes

POLL_S = 0.5
BOUND_S = 4.0
_RECONNECT_S = 1.0
_log = structlog.get_logger("changes")
_readings = Counter("sealcomb_changes_readings_total", "Readings of numbered changes", ["outcome"])


class Log(Protocol):
    """Where changes are numbered."""

    @property
    def pushes(self) -> bool:
        """Whether it says by itself that there are changes."""

    def position(self) -> int:
        """The number of the last change."""

    def since(self, position: int) -> Changes:
        """The changes after a position."""

    def wakeups(self) -> AsyncIterator[None]:
        """Gives something at once, and whenever there may be changes."""


class Follower(Protocol):
    """What holds on to accounts and tokens."""

    def drop_account(self, account: str) -> None:
        """Forgets an account and its tokens."""

    def drop_token(self, token_id: str) -> None:
        """Forgets a token."""

    def drop_all(self) -> None:
        """Forgets everything."""

    def believe_until(self, monotonic_s: float) -> None:
        """What is held is true until then."""


Run = Callable[[Callable[[], Changes]], Awaitable[Changes]]


class ChangeFeed:
    """Reads a log for one follower."""

    def __init__(self, log: Log, follower: Follower, clock: Clock, run: Run = asyncio.to_thread) -> None:
        self._log = log
        self._follower = follower
        self._clock = clock
        self._run = run
        self._position: int | None = None
        self._wake = asyncio.Event()
        self._reading: asyncio.Future[Changes] | None = None
        self._began_s = 0.0
        self._failing = False

    async def follow(self) -> None:
        """Reads until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._log.pushes:
                group.create_task(self._listen())
            while True:
                await self.read(POLL_S)
                # Not `wait_for`, which forgets that it was cancelled if the event comes just then.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()

    async def read(self, patience_s: float = BOUND_S) -> None:
        """Reads once; one that takes longer than the patience goes on, and no other begins meanwhile."""
        if self._reading is None:
            self._wake.clear()
            self._began_s = self._clock.monotonic_s()
            self._reading = asyncio.ensure_future(self._run(self._changes))
        done, _ = await asyncio.wait((self._reading,), timeout=patience_s)
        if not done:
            return
        reading, self._reading = self._reading, None
        try:
            changes = reading.result()
        except Exception:  # noqa: BLE001  (whatever it is: nothing is believed until one succeeds)
            if not self._failing:
                _log.exception("changes cannot be read")
            self._failing = True
            _readings.labels("failed").inc()
            return
        self._failing = False
        _readings.labels("ok").inc()
        self._apply(changes)

    def _changes(self) -> Changes:
        if self._position is None:
            return Changes(self._log.position(), (), lost=True)
        return self._log.since(self._position)

    def _apply(self, changes: Changes) -> None:
        self._position = changes.position
        if changes.lost:
            self._follower.drop_all()
        for change in changes.changes:
            _drop(self._follower, change)
        self._follower.believe_until(self._began_s + BOUND_S)

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._log.wakeups():
                    self._wake.set()
            except Exception as error:  # noqa: BLE001  (the outermost loop: polling goes on, and so does this)
                _log.warning("push of changes lost", exception_type=type(error).__name__)
            await asyncio.sleep(_RECONNECT_S)


def _drop(follower: Follower, change: Change) -> None:
    (follower.drop_account if change.kind == ACCOUNT else follower.drop_token)(change.subject)
