"""Time, injected: the one place that reads the system's clocks.

Wall time is for what people and other machines see (expiry, records); monotonic time is for
durations and caches, since wall time may jump.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code that depends on time asks for."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""

    def monotonic_s(self) -> float:
        """Seconds since some fixed point; never goes back."""


class SystemClock:
    """The machine's own clocks."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since some fixed point; never goes back."""
        return time.monotonic()
