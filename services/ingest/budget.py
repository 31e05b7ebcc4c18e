"""How many bytes of uploads may be in memory at once, in all and for one account.

An upload that would exceed the budget is refused with a time to come back, rather than made to
wait: uploads that wait for one another while holding memory can wait for ever.
"""

from __future__ import annotations

from services.common.errors import QuotaViolation, ResourceExhausted

_RETRY_AFTER_S = 2.0


class UploadBudget:
    """Counts bytes in flight. Not for use from several threads."""

    def __init__(self, bytes_max: int, account_bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._account_bytes_max = account_bytes_max
        self._total = 0
        self._by_account: dict[str, int] = {}

    @property
    def bytes_in_flight(self) -> int:
        """Bytes reserved now."""
        return self._total

    def reserve(self, account: str) -> Reservation:
        """An empty reservation; use it as a context manager."""
        return Reservation(self, account)

    def _add(self, account: str, size_bytes: int) -> None:
        mine = self._by_account.get(account, 0) + size_bytes
        if mine > self._account_bytes_max or self._total + size_bytes > self._bytes_max:
            raise ResourceExhausted(
                "too many uploads are in progress; send this one again shortly",
                reason="UPLOADS_BUSY",
                quotas=[
                    QuotaViolation(
                        "uploads in progress", "bytes of documents that are being taken in at once"
                    )
                ],
                retry_after_s=_RETRY_AFTER_S,
            )
        self._total += size_bytes
        self._by_account[account] = mine

    def _release(self, account: str, size_bytes: int) -> None:
        self._total -= size_bytes
        left = self._by_account.get(account, 0) - size_bytes
        if left > 0:
            self._by_account[account] = left
        else:
            self._by_account.pop(account, None)


class Reservation:
    """The bytes of one upload; released when the block ends."""

    def __init__(self, budget: UploadBudget, account: str) -> None:
        self._budget = budget
        self._account = account
        self._size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Reserves more. Raises ResourceExhausted, and then nothing was added."""
        self._budget._add(self._account, size_bytes)
        self._size_bytes += size_bytes

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_error: object) -> None:
        self._budget._release(self._account, self._size_bytes)
        self._size_bytes = 0
