"""What is counted of an account's use, and the names of the quotas on it.

A point is one written by Upsert, or one passage of a document. Bytes are those of Upsert's requests
and of documents' originals. A quota is per day or per month, both UTC.
"""

from __future__ import annotations

import calendar
from dataclasses import astuple, dataclass
from datetime import UTC, datetime

DAY_S = 86_400
PERIODS = ("day", "month")
BOUNDED = ("calls", "points", "documents", "bytes")
QUOTAS = tuple(f"{what}_per_{period}" for period in PERIODS for what in BOUNDED)


@dataclass(slots=True)
class Amounts:
    """Counts of one account."""

    calls: int = 0
    refusals: int = 0
    points: int = 0
    documents: int = 0
    bytes: int = 0

    def add(self, other: Amounts) -> None:
        """Adds what another says."""
        self.calls += other.calls
        self.refusals += other.refusals
        self.points += other.points
        self.documents += other.documents
        self.bytes += other.bytes

    def any(self) -> bool:
        """Whether anything was counted."""
        return any(astuple(self))


@dataclass(frozen=True, slots=True)
class Used:
    """What an account used on a day, and in that day's month, that day included."""

    day: Amounts
    month: Amounts


def day_of(now_s: float) -> int:
    """The day, counted from the Unix epoch."""
    return int(now_s // DAY_S)


def first_of_month(day: int) -> int:
    """The first day of a day's month."""
    return day - datetime.fromtimestamp(day * DAY_S, UTC).day + 1


def end_of(period: str, day: int) -> int:
    """The second at which the day, or its month, is over."""
    if period == "day":
        return (day + 1) * DAY_S
    date = datetime.fromtimestamp(day * DAY_S, UTC)
    return (first_of_month(day) + calendar.monthrange(date.year, date.month)[1]) * DAY_S


def date_of(day: int) -> str:
    """The day as YYYY-MM-DD."""
    return datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat()
