"""Key events: what services must drop, told to all who watch, at once.

A watcher that cannot keep up is ended, never left behind: it reconnects, and a service that
reconnects drops everything. No event is ever silently lost.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.common.errors import ResourceExhausted

HEARTBEAT_S = 2.0
_QUEUE_MAX = 1024
_WATCHERS_MAX = 64


class KeyChange(enum.Enum):
    """What happened to an account's keys."""

    HEARTBEAT = "heartbeat"
    DISABLED = "disabled"
    ENABLED = "enabled"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    RESOURCE_DESTROYED = "resource destroyed"
    ACCOUNT_DESTROYED = "account destroyed"
    NEW_DATA_KEYS = "new data keys"


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """A change, of which account, of which resource."""

    change: KeyChange
    account: str = ""
    resource: str = ""


class Watcher:
    """One watch in progress."""

    def __init__(self, queue_max: int) -> None:
        self._events: asyncio.Queue[KeyEvent | None] = asyncio.Queue(queue_max)
        self._ended = False

    async def next(self, patience_s: float) -> KeyEvent | None:
        """The next event, a heartbeat if there is none for so long, None once the watch has ended."""
        if self._ended:
            return None
        try:
            return await asyncio.wait_for(self._events.get(), patience_s)
        except TimeoutError:
            return KeyEvent(KeyChange.HEARTBEAT)

    def put(self, event: KeyEvent) -> None:
        """Hands an event over; ends the watch if it is behind."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self.end()

    def end(self) -> None:
        """Ends the watch, whatever is waiting."""
        self._ended = True
        while not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(None)


class KeyEvents:
    """Everybody who watches."""

    def __init__(self, *, watchers_max: int = _WATCHERS_MAX, queue_max: int = _QUEUE_MAX) -> None:
        self._watchers: set[Watcher] = set()
        self._watchers_max = watchers_max
        self._queue_max = queue_max
        self._closed = False

    @contextmanager
    def watch(self) -> Iterator[Watcher]:
        """A watch for the block."""
        if len(self._watchers) >= self._watchers_max:
            raise ResourceExhausted("too many services watch key events", retry_after_s=1.0)
        watcher = Watcher(self._queue_max)
        self._watchers.add(watcher)
        if self._closed:
            watcher.end()
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def publish(self, change: KeyChange, account: str, resource: str = "") -> None:
        """Tells everybody."""
        for watcher in self._watchers:
            watcher.put(KeyEvent(change, account, resource))

    def close(self) -> None:
        """Ends every watch, and every later one at once."""
        self._closed = True
        for watcher in self._watchers:
            watcher.end()
