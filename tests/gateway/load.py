"""A steady load on an edge, from a thread of its own, and what became of each call."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.gateway.rig import Edge, bearer

QUERY = "/sealcomb.v1.VectorService/Query"


@dataclass(frozen=True)
class Kind:
    """What is called: callers that wait for each answer, or calls at a rate whatever comes back."""

    token: str
    path: str = QUERY
    body: bytes = b""
    callers: int = 8
    per_second: float = 0.0
    deadline_s: float = 10.0
    connections: int = 2
    metadata: Sequence[tuple[str, str]] = ()
    # A connection of its own for each call.
    fresh: bool = False


@dataclass
class Outcome:
    """How the calls ended: the codes of those that failed; how long all others took, and who answered."""

    failures: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    answers: Counter[bytes] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> int:
        return len(self.latencies_s)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def goodput(self) -> float:
        """Good answers in a second."""
        return self.good / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the good calls was answered."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    """One kind of calls until `stop`."""

    def __init__(self, edge: Edge, kind: Kind) -> None:
        self._edge = edge
        self._kind = kind
        self.outcome = Outcome()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> Outcome:
        """Ends it when the calls under way have ended."""
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.outcome

    async def _run(self) -> None:
        channels = [self._channel() for _ in range(self._kind.connections)]
        started = time.monotonic()
        if self._kind.per_second:
            await self._at_a_rate(channels)
        else:
            await asyncio.gather(
                *(self._caller(channels[number % len(channels)]) for number in range(self._kind.callers))
            )
        self.outcome.seconds = time.monotonic() - started
        for channel in channels:
            await channel.close()

    async def _caller(self, channel: grpc.aio.Channel) -> None:
        while not self._stopping.is_set():
            if self._kind.fresh:
                async with self._channel() as own:
                    await self._call(own)
            else:
                await self._call(channel)

    async def _at_a_rate(self, channels: list[grpc.aio.Channel]) -> None:
        running: set[asyncio.Task[None]] = set()
        started, sent = time.monotonic(), 0
        while not self._stopping.is_set():
            due = int((time.monotonic() - started) * self._kind.per_second)
            for number in range(sent, due):
                task = asyncio.create_task(self._call(channels[number % len(channels)]))
                running.add(task)
                task.add_done_callback(running.discard)
            sent = due
            await asyncio.sleep(0.005)
        if running:
            await asyncio.wait(running)

    async def _call(self, channel: grpc.aio.Channel) -> None:
        kind = self._kind
        method: Any = channel.unary_unary(kind.path)
        began = time.monotonic()
        try:
            answer = await method(
                kind.body, metadata=(*bearer(kind.token), *kind.metadata), timeout=kind.deadline_s
            )
        except grpc.aio.AioRpcError as error:
            self.outcome.failures[error.code().name] += 1
            if len(self.outcome.details) < 20:
                self.outcome.details.append(f"{error.code().name}: {error.details()}")
            return
        self.outcome.latencies_s.append(time.monotonic() - began)
        self.outcome.answers[answer] += 1

    def _channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self._edge.installation.edge_ca_file.read_bytes())
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        return grpc.aio.secure_channel(f"127.0.0.1:{self._edge.port}", credentials, options=options)


@contextmanager
def load(edge: Edge, kind: Kind) -> Iterator[Outcome]:
    """A load for as long as the block runs; what it gives is whole once the block has ended."""
    running = Load(edge, kind)
    running.start()
    try:
        yield running.outcome
    finally:
        running.stop()


def measured(edge: Edge, kind: Kind, seconds: float) -> Outcome:
    """The outcome of so many seconds of a load."""
    with load(edge, kind) as outcome:
        time.sleep(seconds)
    return outcome
