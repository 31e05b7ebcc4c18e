"""Several policy processes, each with its Envoy, over one PostgreSQL and one Valkey.

Each process reaches the two through proxies of its own, so that one alone can be cut off.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from services.standalone.pki import ensure_installation
from tests.gateway.rig import Backends, Edge, bearer, free_port
from tests.postgres import Postgres, running_postgres
from tests.tcp_proxy import TcpProxy, running_proxy
from tests.valkey_server import ValkeyServer, running_valkey

QUERY = "/sealcomb.v1.VectorService/Query"


@dataclass
class Cluster:
    """The processes and what they share."""

    edges: list[Edge]
    postgres: Postgres
    valkey: ValkeyServer
    database_proxies: list[TcpProxy]
    limits_proxies: list[TcpProxy]
    backends: Backends


@contextmanager
def running_cluster(folder: Path, count: int, **settings: str) -> Iterator[Cluster]:
    """So many processes, ready."""
    installation = ensure_installation(folder / "keys")
    backends = Backends(installation)
    named = {f"SEALCOMB_{name.upper()}": value for name, value in settings.items()}
    with ExitStack() as stack:
        backends.start()
        stack.callback(backends.stop)
        postgres = stack.enter_context(running_postgres(folder))
        (folder / "valkey").mkdir()
        valkey = stack.enter_context(running_valkey(folder / "valkey"))
        database = [stack.enter_context(running_proxy(postgres.port)) for _ in range(count)]
        limits = [stack.enter_context(running_proxy(valkey.port)) for _ in range(count)]
        edges = []
        for number in range(count):
            own = folder / f"edge{number}"
            own.mkdir()
            reached = {
                "SEALCOMB_DATABASE_URL": postgres.url_at(database[number].port),
                "SEALCOMB_SHARED_LIMITS_URL": f"valkey://127.0.0.1:{limits[number].port}/0",
            }
            edges.append(Edge(own, installation, backends, free_port(), named | reached))
        stack.callback(_stop, edges)
        # Not all at once: each start is a second of work.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Edge.start, edges))
        # Whichever was first made the operator's token.
        (token,) = (path.read_bytes() for path in folder.glob("edge*/operator.token"))
        for edge in edges:
            (edge.folder / "operator.token").write_bytes(token)
        yield Cluster(edges, postgres, valkey, database, limits, backends)


def _stop(edges: Sequence[Edge]) -> None:
    for edge in edges:
        if edge.process is not None:
            edge.stop(signal.SIGTERM)


@dataclass
class Outcome:
    """What a load met."""

    began_s: float = 0.0
    # When the first answer came, when the last call was begun at the latest, and when the last answer came.
    first_s: float = 0.0
    stopped_s: float = 0.0
    ended_s: float = 0.0
    # For how long no answer came at the most: a machine that stands still asks for nothing.
    longest_gap_s: float = 0.0
    codes: dict[grpc.StatusCode, int] = field(default_factory=dict)

    def note(self, code: grpc.StatusCode) -> None:
        """An answer came."""
        now_s = time.monotonic()
        self.first_s = self.first_s or now_s
        self.longest_gap_s = max(self.longest_gap_s, now_s - (self.ended_s or now_s))
        self.ended_s = now_s
        self.codes[code] = self.codes.get(code, 0) + 1

    @property
    def admitted(self) -> int:
        """Calls that were let in."""
        return self.codes.get(grpc.StatusCode.OK, 0)

    @property
    def refused(self) -> int:
        """Calls that a limit refused: without any, the limit was not reached."""
        return self.codes.get(grpc.StatusCode.RESOURCE_EXHAUSTED, 0)

    def highest_share(self, burst: float, rate: float) -> float:
        """The admitted calls as a part of what the limit allows while calls were begun and answered.

        Before the first is decided the bucket is full; while the last ones are answered nobody asks.
        """
        return self.admitted / (burst + rate * (self.stopped_s - self.first_s))

    def share(self, burst: float, rate: float) -> float:
        """The admitted calls as a part of what the limit allows until the last answer."""
        return self.admitted / (burst + rate * (self.ended_s - self.began_s))


def hammer(
    edges: Sequence[Edge], tokens: Sequence[str], connections: int, seconds: float, path: str = QUERY
) -> Outcome:
    """Calls as fast as the connections allow, spread over the edges; a connection that fails goes on."""
    return asyncio.run(_hammer(edges, tokens, connections, seconds, path))


async def _hammer(
    edges: Sequence[Edge], tokens: Sequence[str], connections: int, seconds: float, path: str
) -> Outcome:
    outcome = Outcome()
    channels = [_channel(edges[number % len(edges)]) for number in range(connections)]
    for start in range(0, connections, 20):
        waits = [channel.channel_ready() for channel in channels[start : start + 20]]
        await asyncio.wait_for(asyncio.gather(*waits), 60)
    outcome.began_s = time.monotonic()
    outcome.stopped_s = deadline = outcome.began_s + seconds

    async def work(number: int) -> None:
        method: Any = channels[number].unary_unary(path)
        metadata = bearer(tokens[number % len(tokens)])
        while time.monotonic() < deadline:
            try:
                await method(b"", metadata=metadata, timeout=10)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
                if code is grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(0.05)
            outcome.note(code)

    await asyncio.gather(*(work(number) for number in range(connections)))
    await asyncio.gather(*(channel.close() for channel in channels))
    return outcome


def _channel(edge: Edge) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(edge.installation.edge_ca_file.read_bytes())
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    return grpc.aio.secure_channel(f"127.0.0.1:{edge.port}", credentials, options=options)
