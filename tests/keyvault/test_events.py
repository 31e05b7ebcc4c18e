"""Key events reach every watcher in order, or the watch ends: nothing is silently lost (D14)."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import ResourceExhausted
from services.keyvault.events import KeyChange, KeyEvent, KeyEvents, Watcher


async def _drain(watcher: Watcher) -> list[KeyEvent]:
    found = []
    while (event := await watcher.next(0.01)) is not None and event.change is not KeyChange.HEARTBEAT:
        found.append(event)
    return found


async def test_every_watcher_gets_every_event_in_order() -> None:
    events = KeyEvents()
    with events.watch() as first, events.watch() as second:
        events.publish(KeyChange.DISABLED, "a")
        events.publish(KeyChange.RESOURCE_DESTROYED, "a", "r")
        expected = [KeyEvent(KeyChange.DISABLED, "a"), KeyEvent(KeyChange.RESOURCE_DESTROYED, "a", "r")]
        assert await _drain(first) == await _drain(second) == expected


async def test_silence_is_a_heartbeat() -> None:
    with KeyEvents().watch() as watcher:
        assert await watcher.next(0.01) == KeyEvent(KeyChange.HEARTBEAT)


async def test_a_slow_watcher_is_ended_and_the_others_go_on() -> None:
    events = KeyEvents(queue_max=5)
    with events.watch() as slow, events.watch() as quick:
        for number in range(6):
            events.publish(KeyChange.DISABLED, str(number))
            assert (await quick.next(1.0)) == KeyEvent(KeyChange.DISABLED, str(number))
        assert await slow.next(1.0) is None
        assert await slow.next(1.0) is None


async def test_a_waiting_watcher_learns_of_an_event_at_once() -> None:
    events = KeyEvents()
    with events.watch() as watcher:
        waiting = asyncio.create_task(watcher.next(60.0))
        await asyncio.sleep(0)
        events.publish(KeyChange.SUSPENDED, "a")
        assert await asyncio.wait_for(waiting, 1.0) == KeyEvent(KeyChange.SUSPENDED, "a")


async def test_closing_ends_waiting_and_later_watches() -> None:
    events = KeyEvents()
    with events.watch() as watcher:
        waiting = asyncio.create_task(watcher.next(60.0))
        await asyncio.sleep(0)
        events.close()
        assert await asyncio.wait_for(waiting, 1.0) is None
    with events.watch() as late:
        assert await late.next(60.0) is None


async def test_watchers_are_bounded_and_leave_when_they_go() -> None:
    events = KeyEvents(watchers_max=2)
    with events.watch(), events.watch(), pytest.raises(ResourceExhausted), events.watch():
        pass
    with events.watch(), events.watch():
        pass
