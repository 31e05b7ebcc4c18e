"""One line of the table of a whole installation's faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

_RECOVERS_WITHIN_S = 90.0


@dataclass
class Row:
    """Which fault, how often, and what came of it."""

    fault: str
    where: str
    times: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recovery_s: float = 0.0

    def recovers(self, works: Callable[[], bool]) -> None:
        """Waits until it works again, and notes how long that took at most."""
        started = time.monotonic()
        while not works():
            if time.monotonic() - started > _RECOVERS_WITHIN_S:
                self.wrong.append(f"does not recover within {_RECOVERS_WITHIN_S:.0f} s")
                break
            time.sleep(0.05)
        self.recovery_s = max(self.recovery_s, time.monotonic() - started)

    def __str__(self) -> str:
        figures = (
            f"{self.times:6} {self.acknowledged:7} {self.refused:8} {len(self.lost):5} {len(self.wrong):5}"
        )
        return f"{self.fault:22} {self.where:14} {figures} {self.recovery_s:10.1f}"
