"""When a schedule runs next: cron's five fields in a time zone.

Minute, hour, day of month, month, day of week (0 or 7 is Sunday); each is `*`, a number, a name (jan, mon),
a range, a list, with an optional step. As in cron, where both days are restricted one of them
is enough. In the hour that a clock skips in spring a run takes place after it; in the one that comes
twice in autumn it takes place once.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.common.errors import InvalidArgument, invalid

GAP_S_MIN = 300
_DAYS_AHEAD = 366 * 5
_RUNS_LOOKED_AT = 12
_NAMES = {
    3: ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    4: ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_PART = re.compile(r"(\*|[0-9a-z]{1,3})(?:-([0-9a-z]{1,3}))?(?:/(\d{1,2}))?")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that holds."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    # Both days are restricted, so one is enough.
    either_day: bool
    zone: ZoneInfo

    def next_after(self, now_s: float) -> float | None:
        """The first run after a moment, in seconds since the epoch; None if there is none for years."""
        now = dt.datetime.fromtimestamp(now_s, self.zone)
        day = now.date()
        for _ in range(_DAYS_AHEAD):
            if self._runs_on(day):
                moments = (
                    dt.datetime.combine(day, dt.time(hour, minute), self.zone).timestamp()
                    for hour in self.hours
                    for minute in self.minutes
                )
                later = [moment for moment in moments if moment > now_s]
                if later:
                    return min(later)
            day += dt.timedelta(days=1)
        return None

    def _runs_on(self, day: dt.date) -> bool:
        if day.month not in self.months:
            return False
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (by_date or by_week) if self.either_day else (by_date and by_week)


def parse(cron: str, time_zone: str, now_s: float) -> Schedule:
    """The schedule in two texts. Raises InvalidArgument naming the field."""
    fields = cron.lower().split()
    if len(cron) > 256 or len(fields) != 5:
        raise _wrong("must have five fields: minute, hour, day of month, month, day of week")
    sets = [_numbers(place, text) for place, text in enumerate(fields)]
    schedule = Schedule(
        minutes=sets[0],
        hours=sets[1],
        days=sets[2],
        months=sets[3],
        weekdays=frozenset(number % 7 for number in sets[4]),
        either_day=not fields[2].startswith("*") and not fields[4].startswith("*"),
        zone=_zone(time_zone or "UTC"),
    )
    _check_pace(schedule, now_s)
    return schedule


def _numbers(place: int, text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise _wrong("holds what is not a number, name, range, list or step")
        low, high = _RANGES[place]
        step = int(match[3]) if match[3] else 1
        if match[1] != "*":
            low = _number(place, match[1])
            # `5/10` means from 5 on.
            high = _number(place, match[2]) if match[2] else (high if match[3] else low)
        elif match[2]:
            raise _wrong("holds a range of all")
        if step < 1 or low > high:
            raise _wrong("holds an empty range or a step of 0")
        found.update(range(low, high + 1, step))
    return frozenset(found)


def _number(place: int, text: str) -> int:
    low, high = _RANGES[place]
    if text.isdecimal():
        number = int(text)
    elif text in _NAMES.get(place, ()):
        number = _NAMES[place].index(text) + (1 if place == 3 else 0)
    else:
        raise _wrong("holds a name that does not belong there")
    if not low <= number <= high:
        raise _wrong(f"holds a number outside {low} to {high}")
    return number


def _zone(name: str) -> ZoneInfo:
    # A time zone is looked up as a path.
    if not _ZONE.fullmatch(name):
        raise invalid("schedule.time_zone", "is not the name of a time zone")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid("schedule.time_zone", "is not the name of a time zone") from None


def _check_pace(schedule: Schedule, now_s: float) -> None:
    at = schedule.next_after(now_s)
    if at is None:
        raise _wrong("never comes")
    for _ in range(_RUNS_LOOKED_AT):
        following = schedule.next_after(at)
        if following is None:
            return
        if following - at < GAP_S_MIN:
            raise _wrong(f"runs more often than every {GAP_S_MIN // 60} minutes")
        at = following


def _wrong(why: str) -> InvalidArgument:
    return invalid("schedule.cron", why)
