"""A few places for work that holds much memory for as long as a caller likes, and fewer for one account.

Whoever finds none is told at once: a queue of callers that wait would hold memory too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from services.common.errors import ResourceExhausted

_RETRY_AFTER_S = 5.0


class Places:
    """The places for one kind of work; for the event loop."""

    def __init__(self, what: str, most: int, account_most: int) -> None:
        self._what = what
        self._most = most
        self._account_most = account_most
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken now."""
        return self._taken.total()

    @contextmanager
    def take(self, account: str) -> Iterator[None]:
        """Takes a place for the block. Raises ResourceExhausted where the account, or all, have enough."""
        if self.taken >= self._most or self._taken[account] >= self._account_most:
            raise ResourceExhausted(
                f"enough {self._what} run already; try again",
                reason=f"{self._what.upper()}_FULL",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._taken[account] += 1
        try:
            yield
        finally:
            self._taken[account] -= 1
            self._taken += Counter()
