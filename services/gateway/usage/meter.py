"""Counts what accounts use, in memory for a moment and then in the store, and refuses beyond their quotas.

A meter knows what its account had used when it was last read, and what this process counted since.
What other processes and services count arrives within a few seconds, so a quota may be passed by
what is used in that time and by what is under way; it is never passed for longer. Nothing is lost but
the last moment of a process that is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from services.common.clock import Clock
from services.common.errors import QuotaViolation, ResourceExhausted
from services.common.methods import PublicMethod
from services.gateway.usage.amounts import PERIODS, Amounts, Used, day_of, end_of

FLUSH_EVERY_S = 2.0
# Sessions look their meter up again before this, so an older one is nobody's.
_IDLE_S = 60.0


class Store(Protocol):
    """Where usage is kept."""

    def add(self, deltas: Sequence[tuple[str, int, Amounts]]) -> None:
        """Adds counts of accounts and days."""

    def used(self, account: str, day: int) -> Used:
        """What an account used on a day and in its month so far."""


class Meter:
    """One account's use of a day."""

    __slots__ = ("_base", "account", "day", "pending", "quotas", "touched_s")

    def __init__(self, account: str, day: int) -> None:
        self.account = account
        self.quotas: Mapping[str, int] = {}
        self.day = day
        self.touched_s = 0.0
        # What was used when last read, and what was counted here since and is not in it.
        self._base = Used(Amounts(), Amounts())
        self.pending = Amounts()

    def admit(self, method: PublicMethod, now_s: float) -> None:
        """Raises ResourceExhausted if a quota that the method needs is used up."""
        if self.quotas:
            self._check("calls", now_s)
            for what in method.uses:
                self._check(what, now_s)

    def read(self, used: Used) -> None:
        """Takes over what the store says, which does not have the pending yet."""
        self._base = used

    def written(self, amounts: Amounts) -> None:
        """What was pending is in the store now."""
        self._base.day.add(amounts)
        self._base.month.add(amounts)

    def _check(self, what: str, now_s: float) -> None:
        for period in PERIODS:
            quota = self.quotas.get(f"{what}_per_{period}")
            if quota is None:
                continue
            base: Amounts = getattr(self._base, period)
            if getattr(base, what) + getattr(self.pending, what) >= quota:
                raise ResourceExhausted(
                    f"the account's quota of {what} per {period} is used up; wait for the next {period} or "
                    "ask the operator",
                    reason="QUOTA_EXCEEDED",
                    quotas=[QuotaViolation("account", f"{quota} {what} per {period}")],
                    retry_after_s=max(1.0, end_of(period, self.day) - now_s),
                )


class Meters:
    """The meters of the accounts that are in use here."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._meters: dict[str, Meter] = {}
        # Counts of a day that is over, or that could not be written.
        self._rest: list[tuple[str, int, Amounts]] = []
        self._flushing = asyncio.Lock()
        self._writings: set[asyncio.Task[None]] = set()

    def of(self, account: str, quotas: Mapping[str, int], used: Used | None) -> Meter:
        """An account's meter, with these quotas from now on; `used` is what the store says, if asked."""
        meter = self._meters.get(account)
        if meter is None:
            meter = self._meters[account] = Meter(account, day_of(self._clock.now_s()))
        if used is not None:
            meter.read(used)
        meter.quotas = quotas
        meter.touched_s = self._clock.monotonic_s()
        return meter

    def used(self, account: str, quotas: Mapping[str, int]) -> Used | None:
        """What the store says of an account that has quotas, unless its meter knows. Blocking."""
        meter = self._meters.get(account)
        if not quotas or (meter is not None and meter.quotas):
            return None
        return self._store.used(account, day_of(self._clock.now_s()))

    def turn(self, meter: Meter, day: int) -> None:
        """Begins a new day for a meter."""
        if meter.pending.any():
            self._rest.append((meter.account, meter.day, meter.pending))
        month = Amounts() if end_of("month", meter.day) <= day * 86_400 else meter._base.month
        month.add(meter.pending)
        meter.pending = Amounts()
        meter.read(Used(Amounts(), month))
        meter.day = day

    async def flush(self) -> None:
        """Writes what was counted, and reads what accounts with quotas have used in all."""
        await self.write()
        async with self._flushing:
            self._sweep()
            for meter in [meter for meter in self._meters.values() if meter.quotas]:
                day, pending = meter.day, meter.pending
                used = await asyncio.to_thread(self._store.used, meter.account, day)
                if meter.day == day and meter.pending is pending:
                    meter.read(used)

    async def write(self) -> None:
        """Writes what was counted; who stops waiting does not end it."""
        # The thread that writes would go on all the same, and what it wrote be counted again.
        writing = asyncio.get_running_loop().create_task(self._write())
        self._writings.add(writing)
        writing.add_done_callback(self._written)
        await asyncio.shield(writing)

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writings.discard(writing)
        if not writing.cancelled():
            # Looked at, since whoever waited may have left.
            writing.exception()

    async def _write(self) -> None:
        async with self._flushing:
            await self._write_busy()

    async def _write_busy(self) -> None:
        busy = [meter for meter in self._meters.values() if meter.pending.any()]
        rest, self._rest = self._rest, []
        deltas = [*rest, *((meter.account, meter.day, meter.pending) for meter in busy)]
        if not deltas:
            return
        for meter in busy:
            meter.written(meter.pending)
            meter.pending = Amounts()
        try:
            await asyncio.to_thread(self._store.add, deltas)
        except Exception:
            # Counted again with the next writing; what the store did of this one it undid.
            self._rest = deltas + self._rest
            raise

    def _sweep(self) -> None:
        idle_since_s = self._clock.monotonic_s() - _IDLE_S
        for account, meter in list(self._meters.items()):
            if meter.touched_s < idle_since_s and not meter.pending.any():
                del self._meters[account]
