"""Failed authentications by client address, and the look-ups that may yet become such.

A look-up that takes a while counts as a failure until it is over: an address never has more of them under way
than it may still fail, or random tokens that come at once would all reach the database before the
first is found wrong. Whoever comes when that many are under way waits for one to end; nobody is refused
for what has not failed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from services.common.errors import QuotaViolation, ResourceExhausted
from services.gateway.buckets import AddressBuckets

# What floating-point refills may miss of a whole failure.
_EPSILON = 1e-6


@dataclass(slots=True)
class _Looking:
    """The look-ups of one bucket's addresses."""

    under_way: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Failures:
    """Who may still fail."""

    def __init__(self, buckets: AddressBuckets) -> None:
        self._buckets = buckets
        # By the bucket's number, as addresses that share one must share this too.
        self._looking: dict[int, _Looking] = {}

    def add(self, address: str) -> None:
        """An authentication of this address has failed."""
        self._buckets.take(address)

    def check(self, address: str) -> None:
        """Raises ResourceExhausted where the address may not fail any more."""
        wait_s = self._buckets.wait_s(address)
        if wait_s:
            raise ResourceExhausted(
                "too many failed authentications from this address; wait and check the token",
                reason="TOO_MANY_FAILURES",
                quotas=[QuotaViolation("address", "failed authentications")],
                retry_after_s=wait_s,
            )

    async def enter(self, address: str) -> None:
        """Begins a look-up, once the address has room for it to fail; `leave` must follow.

        Raises ResourceExhausted as `check` does.
        """
        slot = self._buckets.slot_of(address)
        entered = False
        try:
            while not entered:
                # Each time anew: who was refused meanwhile may have been the last to leave the one before.
                looking = self._looking.setdefault(slot, _Looking())
                self.check(address)
                room = self._buckets.left(address) + _EPSILON - looking.under_way
                if room >= 1 or not looking.under_way:
                    looking.under_way += 1
                    entered = True
                else:
                    await _turn(looking)
        finally:
            if not entered:
                self._pass_on(slot)

    def leave(self, address: str) -> None:
        """A look-up is over; `add` it first if it failed."""
        slot = self._buckets.slot_of(address)
        self._looking[slot].under_way -= 1
        self._pass_on(slot)

    def _pass_on(self, slot: int) -> None:
        # Whoever is woken takes the place, or learns that there is none and wakes the next.
        looking = self._looking.get(slot)
        if looking is None:
            return
        while looking.waiting:
            turn = looking.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        if not looking.under_way:
            del self._looking[slot]


async def _turn(looking: _Looking) -> None:
    turn = asyncio.get_running_loop().create_future()
    looking.waiting.append(turn)
    await turn
