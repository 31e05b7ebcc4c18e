"""What other accounts' calls feel of an attack, beside how much that can be told on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.gateway.load import Kind, Outcome, measured
from tests.gateway.rig import Edge

# Two times without an attack that differ by more say that ratios of times say nothing.
_CONTROL_MAX = 1.5
_SECONDS = 4.0


@dataclass(frozen=True)
class Felt:
    """What another account's calls felt, and what became of the attack."""

    failed: int
    good: int
    # All calls that were made to measure it.
    calls: int
    p99_ratio: float
    # The same ratio of two times without an attack.
    control: float
    attacks: list[Any]

    @property
    def steady(self) -> bool:
        """Whether the machine was quiet enough to tell."""
        return self.control < _CONTROL_MAX

    def held(self, ratio: float) -> bool:
        """Whether no call failed, and the others took at most so much longer, if that can be told."""
        return not self.failed and (not self.steady or self.p99_ratio <= ratio)

    def __str__(self) -> str:
        doubt = "" if self.steady else ", too busy to tell"
        times = f"p99 {self.p99_ratio:.1f}x (control {self.control:.1f}x{doubt})"
        return f"{self.failed} of {self.good} failed, {times}"


def feel(pool: ProcessPoolExecutor, edge: Edge, kind: Kind, attack: Callable[[], list[Future[Any]]]) -> Felt:
    """Measures before, during and after an attack of more than four seconds."""
    before = _beside_busy_cores(pool, edge, kind)
    jobs = attack()
    time.sleep(0.5)
    during = measured(edge, kind, _SECONDS)
    results = [job.result() for job in jobs]
    after = _beside_busy_cores(pool, edge, kind)
    low, high = sorted((before.quantile(0.99), after.quantile(0.99)))
    return Felt(
        during.failed,
        during.good,
        before.good + during.good + after.good,
        during.quantile(0.99) / ((low + high) / 2),
        high / low,
        results,
    )


def _beside_busy_cores(pool: ProcessPoolExecutor, edge: Edge, kind: Kind) -> Outcome:
    """What the calls take beside processes that are as busy as attackers, and leave the edge alone."""
    jobs = [pool.submit(_spin, _SECONDS) for _ in range(2)]
    outcome = measured(edge, kind, _SECONDS)
    for job in jobs:
        job.result()
    return outcome


def _spin(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass
