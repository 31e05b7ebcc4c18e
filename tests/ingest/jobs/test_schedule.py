"""When schedules run: cron's rules, time zones, and the hours that clocks skip or repeat."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.ingest.ingestions.schedule import GAP_S_MIN, parse


def _at(text: str, zone: dt.tzinfo = dt.UTC) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def _runs(cron: str, zone: str, start: str, count: int) -> list[str]:
    now = _at(start)
    schedule = parse(cron, zone, now)
    found = []
    for _ in range(count):
        at = schedule.next_after(now)
        assert at is not None
        assert at > now
        now = at
        found.append(dt.datetime.fromtimestamp(at, ZoneInfo(zone or "UTC")).strftime("%a %d %b %H:%M"))
    return found


@pytest.mark.parametrize(
    ("cron", "zone", "start", "runs"),
    [
        ("0 3 * * *", "", "2026-01-30T12:00", ["Sat 31 Jan 03:00", "Sun 01 Feb 03:00"]),
        ("*/20 9-10 * * mon-fri", "", "2026-01-30T10:30", ["Fri 30 Jan 10:40", "Mon 02 Feb 09:00"]),
        (
            "30 4 1,15 * fri",
            "",
            "2026-01-01T05:00",
            ["Fri 02 Jan 04:30", "Fri 09 Jan 04:30", "Thu 15 Jan 04:30"],
        ),
        ("0 0 29 feb *", "", "2026-01-01T00:00", ["Tue 29 Feb 00:00"]),
        ("0 12 * * 7", "", "2026-01-01T00:00", ["Sun 04 Jan 12:00", "Sun 11 Jan 12:00"]),
        # The clock skips 02:30 on 29 March, and shows it twice on 25 October.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["Sun 29 Mar 03:30", "Mon 30 Mar 02:30"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["Sun 25 Oct 02:30", "Mon 26 Oct 02:30"]),
    ],
)
def test_runs_come_when_they_should(cron: str, zone: str, start: str, runs: list[str]) -> None:
    assert _runs(cron, zone, start, len(runs)) == runs


def test_a_local_time_stays_a_local_time_all_year() -> None:
    runs = _runs("0 3 * * *", "Europe/Berlin", "2026-01-01T12:00", 364)
    assert {run.split()[-1] for run in runs} == {"03:00"}


@pytest.mark.parametrize(
    "cron",
    ["", "x", "0 3 * *", "60 3 * * *", "0 24 * * *", "0 3 0 * *", "0 3 * 13 *", "0 3 * * 8", "0 3 * * moon",
     "0 3-1 * * *", "*/0 3 * * *", "0 3 *-5 * *", "0 3 30 2 *", "0,1 3 * * *", "*/4 * * * *", "0 3 * * * *",
     "0 ٣ * * *", "-1 3 * * *", "0 " * 200],
)  # fmt: skip
def test_what_is_no_schedule_or_too_fast_is_refused(cron: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(cron, "", 1_700_000_000)
    assert caught.value.fields[0].field == "schedule.cron"


@given(st.text(max_size=40), st.floats(0, 4e9))
def test_no_text_breaks_the_parser(text: str, now_s: float) -> None:
    try:
        schedule = parse(text, "", now_s)
    except InvalidArgument:
        return
    at = schedule.next_after(now_s)
    assert at is None or at > now_s


@given(
    st.tuples(st.integers(0, 59), st.integers(0, 23)),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia", "UTC"]),
    st.floats(1.5e9, 2e9),
)
def test_daily_runs_are_a_day_apart(time: tuple[int, int], zone: str, now_s: float) -> None:
    schedule = parse(f"{time[0]} {time[1]} * * *", zone, now_s)
    first = schedule.next_after(now_s)
    assert first is not None
    second = schedule.next_after(first)
    assert second is not None
    assert 82_000 < second - first < 91_000
    assert second - first > GAP_S_MIN
