"""The calls that each account has under way in one server, and the bound on them.

The bound is in the context: the part of the account's that the gateway gives to each replica of a service.
Only the edge's calls count, so a call that a service makes for another is not counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.common.context import CallContext
from services.common.errors import QuotaViolation, ResourceExhausted

_RETRY_S = 0.2


class CallsInFlight:
    """Counts calls by account."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    @contextmanager
    def counted(self, context: CallContext) -> Iterator[None]:
        """Counts a call for the block. Raises ResourceExhausted where it is one too many."""
        account, bound = context.account, context.calls_in_flight
        if not account or not bound:
            yield
            return
        calls = self._calls.get(account, 0)
        if calls >= bound:
            raise ResourceExhausted(
                "too many of the account's calls are under way; wait until some have ended",
                reason="TOO_MANY_IN_FLIGHT",
                quotas=[QuotaViolation("account", f"{bound} calls at a time")],
                retry_after_s=_RETRY_S,
            )
        self._calls[account] = calls + 1
        try:
            yield
        finally:
            left = self._calls[account] - 1
            if left:
                self._calls[account] = left
            else:
                del self._calls[account]
