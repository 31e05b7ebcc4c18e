"""Opens real sources on the servers of these tests, with a clock that sleeping moves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field

from services.ingest.egress.client import Egress, EgressLimits
from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.contract import Batch, Change, CredentialRefused, Item, Removed, Source, Unread
from services.ingest.sources.settings import parse_settings
from tests.ingest.sources.servers.https import HttpsServer, Tls, open_egress
from tests.ingest.sources.servers.world import World

NOW_S = 1_778_000_000.0  # 2026-05-05T16:53:20Z


class TestClock:
    """Moves when it is slept on."""

    __test__ = False

    def __init__(self) -> None:
        self.seconds = NOW_S
        self.slept: list[float] = []

    def now_s(self) -> float:
        return self.seconds

    def monotonic_s(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@dataclass
class Holder:
    """A credential: gives the tokens one after the other as they are refused."""

    tokens: list[str]
    refusals: int = 0

    async def token(self, *, refused: bool = False) -> str:
        if refused:
            self.refusals += 1
            self.tokens.pop(0)
        if not self.tokens:
            raise CredentialRefused("there is no other token")
        return self.tokens[0]


@dataclass
class Opened:
    """A world, the server it runs on, and what opens sources on it."""

    world: World
    server: HttpsServer
    egress: Egress
    clock: TestClock = field(default_factory=TestClock)
    limits: RetryLimits = field(default_factory=RetryLimits)

    @property
    def timing(self) -> Timing:
        return Timing(self.clock, self.clock.sleep, lambda: 1.0)

    def source(self, holder: Holder | None = None, settings: Mapping[str, object] | None = None) -> Source:
        kind = self.world.source_type(self.timing, self.limits)
        values = parse_settings(kind.settings_model, {**self.world.settings(), **(settings or {})})
        credential = holder or (Holder([self.world.token]) if self.world.token else None)
        return kind.open(values, credential, self.egress)

    def fill(self, names: Iterable[str]) -> None:
        for name in names:
            self.world.put(name, f"first line of {name}\nwords of {name}".encode())


@contextlib.asynccontextmanager
async def opened(world: World, tls: Tls, *, limits: EgressLimits | None = None) -> AsyncIterator[Opened]:
    server = HttpsServer(world.handle, tls.server)
    async with server.running():
        world.base = f"https://{world.host}:{server.port}"
        egress = open_egress(tls, f"{world.host}:{server.port}", limits=limits)
        try:
            yield Opened(world, server, egress)
        finally:
            await egress.close()


async def listed(source: Source, cursor: bytes | None = None) -> list[Batch]:
    return [batch async for batch in source.batches(cursor)]


def items(batches: Iterable[Batch]) -> dict[str, Item]:
    return {change.id: change for change in changes(batches) if isinstance(change, Item)}


def removed(batches: Iterable[Batch]) -> set[str]:
    return {change.id for change in changes(batches) if isinstance(change, Removed)}


def unread(batches: Iterable[Batch]) -> list[Unread]:
    return [change for change in changes(batches) if isinstance(change, Unread)]


def changes(batches: Iterable[Batch]) -> list[Change]:
    return [change for batch in batches for change in batch.changes]
