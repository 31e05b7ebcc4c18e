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


def times(what: str, seconds: Sequence[float]) -> Row:
    """A row of p50 and p99."""
    ranked = sorted(seconds)
    p50, p99 = (ranked[min(len(ranked) - 1, int(len(ranked) * share))] * 1e3 for share in (0.5, 0.99))
    return Row(what, len(ranked), f"p50 {p50:9.3f} ms   p99 {p99:9.3f} ms")


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.what:<{width}}  n {row.count:>6}   {row.figures}")
