"""One row of the table, and how a list of times becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement: what of, how often, and its figures in words."""

    what: str
    count: int
    figures: str
    # Whether it keeps its bound; None: it has none.
    holds: bool | None = None


def times(what: str, seconds: Sequence[float]) -> Row:
    """A row of p50 and p99."""
    ranked = sorted(seconds)
    median = ranked[min(len(ranked) - 1, len(ranked) // 2)]
    return Row(what, len(ranked), f"p50 {median * 1e3:9.3f} ms   p99 {p99(ranked) * 1e3:9.3f} ms")


def bounded(row: Row, value: float, most: float, unit: str) -> Row:
    """The row with what its value is to be at most."""
    holds = value <= most
    verdict = f"at most {most:g} {unit}: {'holds' if holds else 'MISSED'}"
    return Row(row.what, row.count, f"{row.figures}   {verdict}", holds)


def p99(seconds: Sequence[float]) -> float:
    """The 99th percentile."""
    ranked = sorted(seconds)
    return ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]


def missed(rows: Sequence[Row]) -> int:
    """How many rows miss their bounds."""
    return sum(row.holds is False for row in rows)


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.what:<{width}}  n {row.count:>6}   {row.figures}")
