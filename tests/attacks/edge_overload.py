"""More calls than a service can serve, and one account that sends far more than it may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.methods import VECTORSTORE
from services.standalone.pki import ensure_installation
from tests.gateway.load import Kind, Outcome, load, measured
from tests.gateway.replica import replicas
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import Json

# One call at a time, each of ten milliseconds: at most a hundred a second.
WORK_MS, CAPACITY = 10, 100.0
IN_FLIGHT_MAX, CALLERS = 20, 10
DEADLINE_S = 2.0


@dataclass(frozen=True)
class Overload:
    """What a load of so many times the capacity made of the service, beside its best."""

    peak: Outcome
    during: Outcome
    after: Outcome
    memory_growth_bytes: int

    @property
    def goodput_share(self) -> float:
        """Good answers in a second, as a share of the best."""
        return self.during.goodput / self.peak.goodput

    @property
    def p99_ratio(self) -> float:
        """How much longer a good answer took."""
        return self.during.quantile(0.99) / self.peak.quantile(0.99)

    @property
    def recovered_share(self) -> float:
        """Good answers in a second once it was over, as a share of the best."""
        return self.after.goodput / self.peak.goodput


@contextmanager
def edge_with_a_slow_service(folder: Path) -> Iterator[Edge]:
    """An edge before a service that can do so much and no more."""
    installation = ensure_installation(folder / "keys")
    options = ("--work-ms", str(WORK_MS), "--slots", "1")
    with replicas(installation, VECTORSTORE, "slow", options=options) as (slow,):
        settings = {
            "vectorstore_address": slow.address,
            "edge_calls_in_flight_max": str(IN_FLIGHT_MAX),
            "calls_in_flight": "100000",
        }
        with running_edge(folder, **settings) as edge:
            yield edge


def overload(edge: Edge, token: str, times: float, seconds: float) -> Overload:
    """Its best, so many times its capacity, and what it does once that is over."""
    peak = measured(edge, Kind(token, callers=CALLERS, deadline_s=DEADLINE_S), seconds)
    before = memory_bytes(edge)
    flood = Kind(token, per_second=times * CAPACITY, deadline_s=DEADLINE_S, connections=8)
    during = measured(edge, flood, seconds)
    grown = memory_bytes(edge) - before
    time.sleep(1)
    after = measured(edge, Kind(token, callers=CALLERS, deadline_s=DEADLINE_S), seconds)
    return Overload(peak, during, after, grown)


def unbounded(config: Json) -> None:
    """Lets any number of calls through to a service."""
    for cluster in config["static_resources"]["clusters"]:
        for bounds in cluster.get("circuit_breakers", {}).get("thresholds", []):
            bounds["max_requests"] = bounds["max_pending_requests"] = 1_000_000


@dataclass(frozen=True)
class Neighbours:
    """A modest account's calls, alone and beside one that sends ten times what it may."""

    alone: Outcome
    beside: Outcome
    greedy: Outcome

    @property
    def p99_ratio(self) -> float:
        """How much longer the modest account's calls took."""
        return self.beside.quantile(0.99) / self.alone.quantile(0.99)


def neighbours(edge: Edge, greedy: str, modest: str, per_second: float, seconds: float) -> Neighbours:
    """The greedy account sends so many calls a second for as long."""
    kind = Kind(modest, callers=1, connections=1)
    alone = measured(edge, kind, seconds)
    with load(edge, Kind(greedy, per_second=per_second, connections=4)) as flood:
        beside = measured(edge, kind, seconds)
    return Neighbours(alone, beside, flood)


def memory_bytes(edge: Edge) -> int:
    """What the edge's Envoy holds."""
    total = 0
    for pid in edge.envoy_pids():
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.split("VmRSS:")[1].split()[0]) * 1024
    return total
