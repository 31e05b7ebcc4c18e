"""The watch for key events: whatever comes just then, who is told to stop stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from services.common.rpc.keyvault import KeyEvent, KeyvaultClient


class FakeStream:
    """A watch on which a message comes when a test says so."""

    def __init__(self) -> None:
        self.came = asyncio.Event()

    async def read(self) -> pb.WatchKeyEventsResponse:
        await self.came.wait()
        self.came.clear()
        return pb.WatchKeyEventsResponse(event=pb.KEY_EVENT_HEARTBEAT)

    def cancel(self) -> None:
        """Nobody asks any more."""


class FakeStub:
    """Keyvault as far as the watch knows it."""

    def __init__(self) -> None:
        self.stream = FakeStream()

    def WatchKeyEvents(self, _request: Any) -> FakeStream:
        return self.stream


@pytest.mark.parametrize("turns", range(6))
async def test_a_watch_that_is_told_to_stop_in_the_moment_of_a_message_stops(turns: int) -> None:
    """A process whose watch went on never ended."""
    client, stub = KeyvaultClient.__new__(KeyvaultClient), FakeStub()
    client._stub = stub  # type: ignore[assignment]

    async def on_event(_event: KeyEvent, _account: str, _resource: str) -> None:
        """Nothing."""

    watching = asyncio.create_task(client.watch(on_event))
    for _ in range(5):
        await asyncio.sleep(0)
    stub.stream.came.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    watching.cancel()
    done, _ = await asyncio.wait({watching}, timeout=5)
    assert done
