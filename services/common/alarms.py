"""Alarms: what a correct service never does, counted for each peer, and told to people when it goes on.

A refusal now and then is a race; dozens in a minute are a service that was taken over, or a
mistake that needs a person. The metric is for an alerting rule (docs/security.md), the log line for
whoever reads. It decides nothing: whatever was refused stays refused without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from prometheus_client import Counter

from services.common import methods
from services.common.clock import Clock

_log = structlog.get_logger("alarms")
WINDOW_S = 60.0
NOTES_MAX = 50

_alarms = Counter(
    "sealcomb_alarms_total",
    "Minutes in which a peer was refused again and again",
    ["service", "peer", "kind"],
)
_refused = Counter(
    "sealcomb_refused_total", "Refusals that no correct peer causes", ["service", "peer", "kind"]
)


@dataclass(slots=True)
class _Window:
    ends_s: float = 0.0
    notes: int = 0


class Alarms:
    """Counts of one service; `note` is called for each refusal, with a kind from a fixed set."""

    def __init__(self, service: str, clock: Clock, notes_max: int = NOTES_MAX) -> None:
        self._service = service
        self._clock = clock
        self._notes_max = notes_max
        self._windows: dict[tuple[str, str], _Window] = {}

    def note(self, peer: str, kind: str) -> None:
        """Counts one refusal; raises the alarm once a minute where there are too many."""
        # Whatever else a certificate says is one label, or the labels would have no bound.
        peer = peer if peer in methods.SERVICES else "unknown"
        _refused.labels(self._service, peer, kind).inc()
        now_s = self._clock.monotonic_s()
        window = self._windows.setdefault((peer, kind), _Window())
        if now_s >= window.ends_s:
            window.ends_s, window.notes = now_s + WINDOW_S, 0
        window.notes += 1
        if window.notes == self._notes_max:
            _alarms.labels(self._service, peer, kind).inc()
            _log.error(
                "a peer is refused again and again; find out why",
                service=self._service,
                peer=peer,
                reason=kind,
            )
