"""Token buckets: rows B8 and B10, for one process."""

from __future__ import annotations

import math
import sys

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.buckets import AddressBuckets, BucketTable, Limits, TokenBucket
from tests.gateway.fakes import FakeClock

STEPS = st.lists(st.tuples(st.floats(0, 3), st.sampled_from((1.0, 2.5, 40.0))), max_size=80)


@given(st.floats(0.1, 1000), st.integers(1, 100), STEPS)
def test_never_more_is_admitted_than_burst_and_refill(
    rate: float, burst: int, steps: list[tuple[float, float]]
) -> None:
    """B8: over any history, admitted cost <= burst + rate * time."""
    clock = FakeClock()
    bucket = TokenBucket(Limits(rate, burst), clock.monotonic_s())
    started_s, admitted = clock.monotonic_s(), 0.0
    for pause_s, cost in steps:
        clock.pass_s(pause_s)
        if not bucket.wait_s(cost, clock.monotonic_s()):
            bucket.take(cost)
            admitted += min(cost, burst)
    assert admitted <= burst + rate * (clock.monotonic_s() - started_s) + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 100), STEPS)
def test_who_waits_as_told_is_admitted(rate: float, burst: int, steps: list[tuple[float, float]]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(Limits(rate, burst), clock.monotonic_s())
    for pause_s, cost in steps:
        clock.pass_s(pause_s)
        clock.pass_s(bucket.wait_s(cost, clock.monotonic_s()))
        assert not bucket.wait_s(cost, clock.monotonic_s())
        bucket.take(cost)


def test_a_busy_caller_gets_nearly_all_that_the_limit_allows() -> None:
    """B8: at least 0.98 of burst + rate * time."""
    clock = FakeClock()
    bucket = TokenBucket(Limits(200.0, 400), clock.monotonic_s())
    admitted = 0
    for _ in range(100_000):
        clock.pass_s(0.0001)
        if not bucket.wait_s(1.0, clock.monotonic_s()):
            bucket.take(1.0)
            admitted += 1
    assert 0.98 * 2400 <= admitted <= 1.01 * 2400


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    """B7, B8: refill follows the monotonic clock alone."""
    clock = FakeClock()
    bucket = TokenBucket(Limits(10.0, 2), clock.monotonic_s())
    bucket.take(2.0)
    clock.wall_s += 86_400
    assert bucket.wait_s(1.0, clock.monotonic_s()) == 0.1
    assert bucket.wait_s(1.0, clock.monotonic_s() - 50) == 0.1


def test_new_limits_hold_at_once_and_refund_nothing() -> None:
    table = BucketTable(clock := FakeClock())
    bucket = table.bucket("account", Limits(10.0, 100))
    bucket.take(99.0)
    assert table.bucket("account", Limits(1.0, 5)) is bucket
    assert bucket.wait_s(2.0, clock.monotonic_s()) == 1.0
    table.bucket("account", Limits(1000.0, 1000))
    assert bucket.wait_s(11.0, clock.monotonic_s()) == 0.01


def test_idle_buckets_are_forgotten_but_none_that_still_bounds() -> None:
    """B10: memory follows the callers that are there."""
    clock = FakeClock()
    table = BucketTable(clock)
    drained = table.bucket("drained", Limits(0.001, 10))
    drained.take(10.0)
    for number in range(20_000):
        clock.pass_s(0.1)
        table.bucket(f"token {number}", Limits(10.0, 10))
    assert len(table) < 9000
    assert table.bucket("drained", Limits(0.001, 10)) is drained


def test_failures_of_one_address_do_not_touch_another() -> None:
    failures = AddressBuckets(Limits(1.0, 3), clock := FakeClock(), b"s" * 32)
    for _ in range(3):
        assert failures.wait_s("192.0.2.1") == 0.0
        failures.take("192.0.2.1")
    assert failures.wait_s("192.0.2.1") == 1.0
    assert failures.wait_s("192.0.2.2") == 0.0
    clock.pass_s(1.0)
    assert failures.wait_s("192.0.2.1") == 0.0


def test_an_ipv6_client_is_its_network_and_a_mapped_one_its_ipv4_address() -> None:
    failures = AddressBuckets(Limits(1.0, 1), FakeClock(), b"s" * 32)
    failures.take("2001:db8:1:2::1")
    assert failures.wait_s("2001:db8:1:2:ffff:ffff:ffff:ffff") > 0
    assert failures.wait_s("2001:db8:1:3::1") == 0
    failures.take("::ffff:192.0.2.7")
    assert failures.wait_s("192.0.2.7") > 0
    assert failures.wait_s("::ffff:192.0.2.8") == 0


def test_what_is_no_address_shares_one_bucket() -> None:
    failures = AddressBuckets(Limits(1.0, 1), FakeClock(), b"s" * 32)
    failures.take("pipe")
    assert failures.wait_s("") > 0


def test_a_flood_of_addresses_takes_no_memory() -> None:
    """B10: the table has a fixed size."""
    failures = AddressBuckets(Limits(1.0, 3), FakeClock(), b"s" * 32, slots=1024)
    before = sys.getsizeof(failures._levels) + sys.getsizeof(failures._updated_s)
    for number in range(50_000):
        failures.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert sys.getsizeof(failures._levels) + sys.getsizeof(failures._updated_s) == before
    assert all(math.isfinite(level) for level in failures._levels)


def test_a_table_by_name_would_grow_with_the_flood() -> None:
    """Twin of the test above: what the fixed size is for."""
    table = BucketTable(FakeClock())
    for number in range(5000):
        table.bucket(f"10.0.{number >> 8}.{number & 255}", Limits(1.0, 3)).take(1.0)
    assert len(table) == 5000
