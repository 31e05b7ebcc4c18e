"""Alarms: raised once a minute for a peer that is refused again and again, with labels from fixed sets."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.common.alarms import Alarms
from tests.keyvault.rig import ManualClock


def _alarms(service: str, peer: str, kind: str) -> float:
    labels = {"service": service, "peer": peer, "kind": kind}
    return REGISTRY.get_sample_value("sealcomb_alarms_total", labels) or 0.0


def test_an_alarm_is_raised_once_a_minute_and_not_for_a_refusal_now_and_then() -> None:
    clock = ManualClock()
    alarms = Alarms("a-service", clock, notes_max=5)
    for _ in range(4):
        alarms.note("ingest", "REFUSED")
    assert _alarms("a-service", "ingest", "REFUSED") == 0
    for _ in range(100):
        alarms.note("ingest", "REFUSED")
    assert _alarms("a-service", "ingest", "REFUSED") == 1
    clock.time_s += 61
    for _ in range(100):
        alarms.note("ingest", "REFUSED")
    assert _alarms("a-service", "ingest", "REFUSED") == 2
    for _ in range(10):
        alarms.note("vectorstore", "REFUSED")
        clock.time_s += 30
    assert _alarms("a-service", "vectorstore", "REFUSED") == 0


def test_peers_that_nobody_knows_are_one_label() -> None:
    alarms = Alarms("another-service", ManualClock(), notes_max=10)
    for number in range(10):
        alarms.note(f"peer {number}", "REFUSED")
    assert _alarms("another-service", "unknown", "REFUSED") == 1
    assert _alarms("another-service", "peer 1", "REFUSED") == 0
