"""What other accounts' calls feel of an attack, beside how much that can be told on this machine.

Short times with and without the attack take turns, and each is compared with those beside it, so that
what else the machine does meanwhile falls out. The calls that are measured come from a process of
their own, which shares no interpreter with services or attackers.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.standalone.pki import Installation
from tests.gateway.load import Kind, Outcome, measured
from tests.gateway.rig import Edge

# Times without an attack that differ by more say that ratios of times say nothing; so does an edge that
# waits for a core, while there is no attack, for more than this part of the time.
_CONTROL_MAX, _WAITED_MAX = 1.5, 0.25
_SECONDS, _ROUNDS = 2.0, 5
# Until an attack is under way.
_BEFORE_S = 0.4
_TURN_S = 0.005


@dataclass(frozen=True)
class Crew:
    """Processes that attack, behind everything else in line for a core; and one that is a neighbour."""

    attackers: ProcessPoolExecutor
    neighbour: ProcessPoolExecutor

    def neighbours_calls(self, edge: Edge, kind: Kind, seconds: float) -> Future[Outcome]:
        """What becomes of the neighbour's calls in so many seconds from now."""
        return self.neighbour.submit(calls, edge.installation, edge.port, kind, seconds)


@contextmanager
def crew(attackers: int) -> Iterator[Crew]:
    """So many attackers and a neighbour."""
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(attackers, mp_context=spawn, initializer=os.nice, initargs=(19,)) as attacking,
        ProcessPoolExecutor(1, mp_context=spawn) as neighbour,
    ):
        yield Crew(attacking, neighbour)


def calls(installation: Installation, port: int, kind: Kind, seconds: float) -> Outcome:
    """So many seconds of calls, from the process that this runs in."""
    nothing_behind: Any = None
    return measured(Edge(Path(), installation, nothing_behind, port), kind, seconds)


@dataclass(frozen=True)
class Felt:
    """What another account's calls felt, and what became of the attacks."""

    failed: int
    good: int
    # All calls that were made to measure it.
    calls: int
    p99_ratio: float
    # The same ratio of times without an attack.
    control: float
    # The part of the time, without an attack, in which the edge could have run and had no core.
    waited: float
    # How long it all took.
    seconds: float
    attacks: list[Any]

    @property
    def steady(self) -> bool:
        """Whether the machine was quiet enough to tell."""
        return self.control < _CONTROL_MAX and self.waited < _WAITED_MAX

    def held(self, ratio: float) -> bool:
        """Whether no call failed, and the others took at most so much longer, if that can be told."""
        return not self.failed and (not self.steady or self.p99_ratio <= ratio)

    def __str__(self) -> str:
        doubt = "" if self.steady else ", too busy to tell"
        times = f"p99 {self.p99_ratio:.1f}x (control {self.control:.1f}x, {self.waited:.0%} waited{doubt})"
        return f"{self.failed} of {self.good} failed, {times}"


def feel(
    crew: Crew,
    edge: Edge,
    kind: Kind,
    attack: Callable[[float], list[Future[Any]]],
    spinning: int = 2,
    share: float = 1.0,
) -> Felt:
    """Lets the neighbour call with and without the attack, in turn.

    attack: begins one of so many seconds. spinning, share: how many attackers keep what part of a core busy
    while there is none, as the attack itself does.
    """
    began = time.monotonic()

    def calm() -> tuple[Outcome, float]:
        jobs = [crew.attackers.submit(_spin, _SECONDS, share) for _ in range(spinning)]
        before = _waited_s(edge)
        outcome = crew.neighbours_calls(edge, kind, _SECONDS).result()
        waited = (_waited_s(edge) - before) / outcome.seconds
        for job in jobs:
            job.result()
        return outcome, waited

    quiet, during, attacks = [calm()], [], []
    for _ in range(_ROUNDS):
        jobs = attack(_SECONDS + 2 * _BEFORE_S)
        time.sleep(_BEFORE_S)
        during.append(crew.neighbours_calls(edge, kind, _SECONDS).result())
        attacks += [job.result() for job in jobs]
        quiet.append(calm())
    before = [outcome for outcome, _ in quiet]
    pairs = list(itertools.pairwise(one.quantile(0.99) for one in before))
    tense = [one.quantile(0.99) for one in during]
    return Felt(
        sum(one.failed for one in during),
        sum(one.good for one in during),
        sum(one.good for one in before + during),
        statistics.median(2 * one / sum(pair) for one, pair in zip(tense, pairs, strict=True)),
        statistics.median(max(pair) / min(pair) for pair in pairs),
        statistics.median(waited for _, waited in quiet),
        time.monotonic() - began,
        attacks,
    )


def _waited_s(edge: Edge) -> float:
    """How long the threads of Envoy and of policy have waited for a core."""
    assert edge.process is not None
    waited_ns = 0
    for pid in (*edge.envoy_pids(), edge.process.pid):
        for task in Path(f"/proc/{pid}/task").iterdir():
            # A thread may end meanwhile.
            with contextlib.suppress(OSError):
                waited_ns += int((task / "schedstat").read_text().split()[1])
    return waited_ns / 1e9


def _spin(seconds: float, share: float) -> None:
    """Keeps this part of a core busy, in turns of five milliseconds."""
    deadline = time.monotonic() + seconds
    while (now := time.monotonic()) < deadline:
        while time.monotonic() < now + share * _TURN_S:
            pass
        time.sleep((1 - share) * _TURN_S)
