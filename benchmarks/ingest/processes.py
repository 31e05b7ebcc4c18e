"""Processor time of an installation by service, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

from tests.system.installation import SERVICES, Installation, command_line

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
EXTRACTION = "extraction"
EMBEDDING = "embedding in ingest"
EDGE = "envoy"
OTHER = "other"


def spent(installation: Installation) -> dict[str, float]:
    """Processor seconds so far; what ended and was collected counts for the parser's children."""
    totals: dict[str, float] = {}
    for pid in installation.pids():
        name = _name(pid)
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        own, ended = (int(fields[11]) + int(fields[12])), (int(fields[13]) + int(fields[14]))
        totals[name] = totals.get(name, 0.0) + own * _TICK_S
        if name == "ingest":
            totals[EXTRACTION] = totals.get(EXTRACTION, 0.0) + ended * _TICK_S
            embedding = _of_threads(pid, "embed-")
            totals[EMBEDDING] = embedding
            totals[name] -= embedding
    return totals


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was spent in between, by service."""
    return {name: after[name] - before.get(name, 0.0) for name in after}


def _of_threads(pid: int, prefix: str) -> float:
    """Processor seconds of a process's threads with names that begin so."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith(prefix):
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total * _TICK_S


def _name(pid: int) -> str:
    arguments = command_line(pid)
    for service in SERVICES:
        if arguments[-1:] == [f"services.{service}.main"]:
            return service
    if arguments and Path(arguments[0]).name.startswith("envoy"):
        return EDGE
    return EXTRACTION if any("extract.worker" in argument for argument in arguments) else OTHER
