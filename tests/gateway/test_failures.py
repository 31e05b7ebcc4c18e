"""Look-ups that may yet fail (B10): whatever order they come and go in, each leaves what it entered."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import ResourceExhausted
from services.gateway.buckets import AddressBuckets, Limits
from services.gateway.failures import Failures
from tests.gateway.fakes import FakeClock

ADDRESS = "192.0.2.1"


async def test_who_is_woken_while_another_is_refused_leaves_what_it_entered() -> None:
    clock = FakeClock()
    failures = Failures(AddressBuckets(Limits(1.0, 1), clock, bytes(32)))
    await failures.enter(ADDRESS)
    woken = asyncio.create_task(failures.enter(ADDRESS))
    await asyncio.sleep(0)
    failures.add(ADDRESS)
    failures.leave(ADDRESS)
    with pytest.raises(ResourceExhausted):
        await failures.enter(ADDRESS)
    clock.pass_s(1)
    await woken
    failures.leave(ADDRESS)
    assert not failures._looking
