"""A KMS asked with care: single flight, deadlines, repetitions, budgets, silence (D12, D13, D15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from services.common import ids
from services.common.clock import SystemClock
from services.common.errors import KeyDisabled, SealcombError
from services.common.sealing import OpenFailed
from services.keyvault.kms import guard
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.binding import handle_of
from services.keyvault.kms.faults import KmsKeyDisabled, KmsThrottled, KmsUnavailable
from services.keyvault.kms.guard import GuardedKms
from services.keyvault.kms.protocol import Kms
from services.keyvault.records import AccountKey, Wrapping
from tests.keyvault.kms.aws_fake import AwsFake
from tests.keyvault.kms.conftest import aws_client
from tests.keyvault.rig import ManualClock, MemoryKms

_ACCOUNT = ids.from_bytes(b"account of tests")
_SECRET = bytes(range(32))


class _Scripted(MemoryKms):
    """A KMS that fails as told, then works; counts what is asked at once."""

    def __init__(self, *failures: SealcombError) -> None:
        super().__init__()
        self.failures = list(failures)
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()
        self.in_flight: dict[str, int] = {}
        self.in_flight_max: dict[str, int] = {}

    async def new_key(self, account: str, version: int) -> AccountKey:
        """After the failures."""
        self._step()
        return await super().new_key(account, version)

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """After the failures, and while it is open."""
        now = self.in_flight[key.account] = self.in_flight.get(key.account, 0) + 1
        self.in_flight_max[key.account] = max(now, self.in_flight_max.get(key.account, 0))
        try:
            self._step()
            await asyncio.sleep(0)
            await self.open.wait()
            return await super().unwrap(key, wrapping, wrapped)
        finally:
            self.in_flight[key.account] -= 1

    def _step(self) -> None:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)


def _wrapping(account: str = _ACCOUNT) -> Wrapping:
    return Wrapping(account, ids.new_id(), "collection", ids.new_id())


class _Time(ManualClock):
    """Time that sleeping moves."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        """Moves on, and lets others run."""
        self.slept.append(delay_s)
        self.time_s += delay_s
        await asyncio.sleep(0)


def _guarded(kms: MemoryKms, time: _Time | None = None, **values: Any) -> GuardedKms:
    time = time or _Time()
    longest: Callable[[float, float], float] = lambda _least, most: most  # noqa: E731
    return GuardedKms(kms, time, sleep=time.sleep, uniform=longest, **values)


async def test_equal_unwraps_that_come_together_are_one_call() -> None:
    """D12; different ones of an account come one after another."""
    kms = _Scripted()
    guarded = _guarded(kms, calls_per_second=1e6)
    key = await guarded.new_key(_ACCOUNT, 1)
    wrapped = {
        wrapping: await guarded.wrap(key, wrapping, _SECRET) for wrapping in [_wrapping() for _ in range(8)]
    }
    kms.asked = 0
    opened = await asyncio.gather(
        *(guarded.unwrap(key, *each) for each in wrapped.items() for _ in range(25))
    )
    assert opened == [_SECRET] * 200
    assert kms.asked == 8
    assert kms.in_flight_max == {_ACCOUNT: 1}


async def test_without_lanes_an_account_has_as_many_calls_in_flight_as_it_likes() -> None:
    """The twin."""
    kms = _Scripted()
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = {
        wrapping: await kms.wrap(key, wrapping, _SECRET) for wrapping in [_wrapping() for _ in range(8)]
    }
    await asyncio.gather(*(kms.unwrap(key, *each) for each in wrapped.items()))
    assert kms.in_flight_max == {_ACCOUNT: 8}


async def test_equal_wrappings_of_other_contexts_or_keys_share_nothing() -> None:
    """D15: the same bytes in two accounts or contexts are two calls, one of which fails."""
    kms = _Scripted()
    guarded = _guarded(kms)
    key, wrapping = await guarded.new_key(_ACCOUNT, 1), _wrapping()
    wrapped = await guarded.wrap(key, wrapping, _SECRET)
    other = await guarded.new_key(ids.new_id(), 1)
    results = await asyncio.gather(
        guarded.unwrap(key, wrapping, wrapped),
        guarded.unwrap(key, _wrapping(), wrapped),
        guarded.unwrap(other, replace(wrapping, account=other.account), wrapped),
        return_exceptions=True,
    )
    assert results[0] == _SECRET
    assert [type(result) for result in results[1:]] == [OpenFailed, OpenFailed]


async def test_what_got_no_answer_is_tried_again_with_growing_delays_and_then_given_up() -> None:
    time = _Time()
    kms = _Scripted(KmsUnavailable(), KmsThrottled(retry_after_s=0.5))
    guarded = _guarded(kms, time)
    key, wrapping = AccountKey(_ACCOUNT, 1, b"", "memory"), _wrapping()
    with pytest.raises(OpenFailed):
        await guarded.unwrap(key, wrapping, b"")
    assert kms.asked == 3
    assert time.slept == [pytest.approx(0.2), pytest.approx(0.8 + 0.5)]
    kms.failures = [KmsUnavailable() for _ in range(9)]
    with pytest.raises(KmsUnavailable):
        await guarded.unwrap(key, wrapping, b"")
    assert len(kms.failures) == 6


async def test_a_refusal_is_final() -> None:
    kms = _Scripted(KmsKeyDisabled())
    with pytest.raises(KeyDisabled):
        await _guarded(kms).unwrap(AccountKey(_ACCOUNT, 1, b"", "memory"), _wrapping(), b"")
    assert kms.asked == 1


async def test_a_creation_is_repeated_only_if_nothing_was_done() -> None:
    """D22: a key that was made and not answered is not made twice by itself."""
    kms = _Scripted(KmsUnavailable())
    with pytest.raises(KmsUnavailable):
        await _guarded(kms).new_key(_ACCOUNT, 1)
    assert kms.asked == 1
    kms = _Scripted(KmsUnavailable(unheard=True), KmsThrottled())
    await _guarded(kms).new_key(_ACCOUNT, 1)
    assert kms.asked == 3


async def test_a_caller_waits_no_longer_than_the_deadline_and_the_lane_stays_taken() -> None:
    """D12: one call in flight, although its caller has given up."""
    kms = _Scripted()
    guarded = GuardedKms(kms, SystemClock(), timeout_s=0.05)
    key, wrapping, second = await guarded.new_key(_ACCOUNT, 1), _wrapping(), _wrapping()
    wrapped = await guarded.wrap(key, wrapping, _SECRET)
    again = await guarded.wrap(key, second, _SECRET)
    kms.open.clear()
    for each in ((wrapping, wrapped), (second, again)):
        with pytest.raises(KmsUnavailable):
            await guarded.unwrap(key, *each)
    assert kms.in_flight == {_ACCOUNT: 1}
    kms.open.set()
    await asyncio.sleep(0.01)
    assert await guarded.unwrap(key, wrapping, wrapped) == _SECRET
    assert kms.in_flight_max == {_ACCOUNT: 1}


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_WAITING_MAX", 3)
    monkeypatch.setattr(guard, "_LANES_MAX", 5)
    kms = _Scripted()
    guarded = _guarded(kms, timeout_s=1.0)
    key = await guarded.new_key(_ACCOUNT, 1)
    kms.open.clear()
    waiting = [asyncio.create_task(guarded.unwrap(key, _wrapping(), b"")) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(KmsUnavailable):
        await guarded.unwrap(key, _wrapping(), b"")
    for _ in range(20):
        await guarded.new_key(ids.new_id(), 1)
    assert len(guarded._lanes) == 5
    # The one that is in use is not dropped.
    assert _ACCOUNT in guarded._lanes
    kms.open.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not guarded._unwraps


async def test_an_account_has_a_budget_and_others_do_not_pay_for_it() -> None:
    """D13."""
    time = _Time()
    kms = _Scripted()
    guarded = _guarded(kms, time, calls_per_second=10.0, timeout_s=5.0)
    for _ in range(5):
        await guarded.new_key(_ACCOUNT, 1)
    assert time.slept == []
    await guarded.new_key(_ACCOUNT, 1)
    assert time.slept == [pytest.approx(0.1)]
    await guarded.new_key(ids.new_id(), 1)
    assert len(time.slept) == 1


async def test_a_silent_kms_is_left_alone_but_for_a_probe() -> None:
    """D12: nobody waits for it meanwhile, and its recovery is seen by the next probe."""
    time = _Time()
    kms = _Scripted(*(KmsUnavailable() for _ in range(8)))
    guarded = _guarded(kms, time)
    for _ in range(8):
        with pytest.raises(KmsUnavailable):
            await guarded.new_key(ids.new_id(), 1)
    # It is asked once more, and then not until the next probe is due.
    kms.failures = [KmsUnavailable()]
    for _ in range(10):
        with pytest.raises(KmsUnavailable):
            await guarded.new_key(ids.new_id(), 1)
    assert kms.asked == 9
    assert time.slept == []
    time.time_s += 0.5
    await guarded.new_key(ids.new_id(), 1)
    await guarded.new_key(ids.new_id(), 1)
    assert kms.asked == 11


async def test_throttling_is_not_silence() -> None:
    kms = _Scripted(*(KmsThrottled() for _ in range(30)))
    guarded = _guarded(kms)
    for _ in range(10):
        with pytest.raises(KmsUnavailable):
            await guarded.new_key(ids.new_id(), 1)
    assert not kms.failures
    await guarded.new_key(_ACCOUNT, 1)


async def test_a_storm_of_one_account_leaves_the_others_theirs(fake: AwsFake) -> None:
    """D13: a quota of 100 a second for all, one account asking as fast as it can; the twin is below."""
    kms = GuardedKms(AwsKms(aws_client(fake)), SystemClock(), calls_per_second=50.0)
    stormy, calm = await kms.new_key(_ACCOUNT, 1), await kms.new_key(ids.new_id(), 1)
    storm = {
        wrapping: await kms.wrap(stormy, wrapping, _SECRET) for wrapping in [_wrapping() for _ in range(20)]
    }
    quiet = _wrapping(calm.account)
    wrapped = await kms.wrap(calm, quiet, _SECRET)
    fake.faults.quota = 100
    assert await _failures(fake, kms, (stormy, storm), (calm, quiet, wrapped)) == 0
    assert fake.in_flight_max[_ACCOUNT] == 1
    await kms.close()


async def test_without_a_budget_a_storm_takes_the_quota_of_all(fake: AwsFake) -> None:
    """D13's twin: nothing but AWS between the accounts."""
    kms = AwsKms(aws_client(fake))
    stormy, calm = await kms.new_key(_ACCOUNT, 1), await kms.new_key(ids.new_id(), 1)
    storm = {
        wrapping: await kms.wrap(stormy, wrapping, _SECRET) for wrapping in [_wrapping() for _ in range(20)]
    }
    quiet = _wrapping(calm.account)
    wrapped = await kms.wrap(calm, quiet, _SECRET)
    assert await _failures(fake, kms, (stormy, storm), (calm, quiet, wrapped)) > 0
    await kms.close()


async def _failures(
    fake: AwsFake,
    kms: Kms,
    stormy: tuple[AccountKey, dict[Wrapping, bytes]],
    calm: tuple[AccountKey, Wrapping, bytes],
) -> int:
    """How many of the calm account's calls fail while the other storms."""
    fake.faults.quota = 100
    fake.in_flight_max.clear()

    async def ask_on() -> None:
        while True:
            asked = (kms.unwrap(stormy[0], *each) for each in stormy[1].items())
            await asyncio.gather(*asked, return_exceptions=True)

    storming = asyncio.create_task(ask_on())
    failed = 0
    for _ in range(40):
        try:
            assert await kms.unwrap(*calm) == _SECRET
        except SealcombError:
            failed += 1
        await asyncio.sleep(0.05)
    storming.cancel()
    await asyncio.gather(storming, return_exceptions=True)
    return failed


async def test_after_an_outage_it_serves_again_within_a_second(fake: AwsFake) -> None:
    """D12: refused connections and silence, with many accounts asking all the while."""
    kms = GuardedKms(AwsKms(aws_client(fake, timeout_s=1.0)), SystemClock(), timeout_s=1.0)
    kept = []
    for _ in range(20):
        key = await kms.new_key(ids.new_id(), 1)
        wrapping = _wrapping(key.account)
        kept.append((key, wrapping, await kms.wrap(key, wrapping, _SECRET)))
    fake.stop()
    results = await asyncio.gather(*(kms.unwrap(*each) for each in kept * 3), return_exceptions=True)
    assert all(isinstance(result, KmsUnavailable) for result in results)
    fake.start()
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    while True:
        results = await asyncio.gather(*(kms.unwrap(*each) for each in kept), return_exceptions=True)
        if all(result == _SECRET for result in results):
            break
        assert all(isinstance(result, bytes | KmsUnavailable) for result in results)
        await asyncio.sleep(0.02)
    assert loop.time() - started_s < 1.0
    assert handle_of(kept[0][0]).account == kept[0][0].account
    await kms.close()
