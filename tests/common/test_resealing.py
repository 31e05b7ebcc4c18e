"""Background sealing anew: whose permit it is done under, how fast, and what a refusal ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from services.common.context import ContextRefused, current_account, current_caller
from services.common.errors import KeyDisabled, NotFound
from services.common.resealing import Reseal, Resealing


@dataclass
class _Clock:
    time_s: float = 0.0

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s


@dataclass
class _Bench:
    due: list[Reseal]
    fails: dict[str, Exception] = field(default_factory=dict)
    clock: _Clock = field(default_factory=_Clock)
    done: list[tuple[str, str, str]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    async def list_reseals(self) -> list[Reseal]:
        return self.due

    async def reseal(self, resource: str) -> None:
        self.clock.time_s += 3.0
        if resource in self.fails:
            raise self.fails[resource]
        self.done.append((current_account(), current_caller().text, resource))

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def work(self) -> Resealing:
        return Resealing("ingest", self, self.reseal, self.clock, self.sleep)


_DUE = [Reseal("a", ("1", "2", "3"), "permit of a"), Reseal("b", ("4",), "permit of b")]


async def test_each_account_is_sealed_anew_under_its_own_permit_with_pauses() -> None:
    bench = _Bench(_DUE)
    await bench.work().once()
    assert bench.done == [("a", "permit of a", name) for name in "123"] + [("b", "permit of b", "4")]
    # As long as each took: half of the time at most.
    assert bench.pauses == [3.0] * 4
    with pytest.raises(ContextRefused):
        current_caller()
    assert "permit of" not in repr(_DUE)


async def test_what_does_not_work_leaves_the_others_alone() -> None:
    bench = _Bench(_DUE, {"2": NotFound("gone")})
    await bench.work().once()
    assert [resource for _account, _permit, resource in bench.done] == ["1", "3", "4"]


async def test_a_resource_that_fails_in_an_unknown_way_stands_before_no_other() -> None:
    bench = _Bench(_DUE, {"1": OSError("the disk")})
    await bench.work().once()
    assert [resource for _account, _permit, resource in bench.done] == ["2", "3", "4"]


async def test_it_asks_again_at_once_as_long_as_something_is_handed_out() -> None:
    bench = _Bench([])
    rest = [[_DUE[0]], [_DUE[1]], []]

    async def one_by_one() -> list[Reseal]:
        return rest.pop(0)

    async def sleep(seconds: float) -> None:
        if not rest:
            raise asyncio.CancelledError
        bench.pauses.append(seconds)

    bench.list_reseals = one_by_one  # type: ignore[method-assign]
    bench.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await bench.work().run()
    assert [resource for _account, _permit, resource in bench.done] == ["1", "2", "3", "4"]
    assert len(bench.pauses) == 1 + 4


async def test_an_account_that_is_turned_off_is_left_at_once_and_no_other() -> None:
    bench = _Bench(_DUE, {"1": KeyDisabled()})
    await bench.work().once()
    assert [resource for _account, _permit, resource in bench.done] == ["4"]
