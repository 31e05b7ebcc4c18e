"""How much a collection and an account may hold.

The usage of an account is counted in memory while one of its collections is open: read from SQL when
the first is opened, then kept current by every write. A write is checked before it is made, against what is
durable; writes that wait together for one commit are checked against the same moment, so a limit may be
passed by what waits together, never by more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from services.common.errors import QuotaViolation, ResourceExhausted


@dataclass(frozen=True, slots=True)
class Caps:
    """The limits; bytes are those of memory while open."""

    collection_points: int = 10_000_000
    collection_bytes: int = 1024**3
    account_points: int = 20_000_000
    account_bytes: int = 16 * 1024**3


class Usage:
    """What the collections of one account hold."""

    def __init__(self) -> None:
        self.points = 0
        self.size_bytes = 0
        self._collections: dict[str, tuple[int, int]] = {}

    def set(self, collection: str, points: int, size_bytes: int) -> None:
        """Notes what a collection holds now."""
        before = self._collections.get(collection, (0, 0))
        self._collections[collection] = (points, size_bytes)
        self.points += points - before[0]
        self.size_bytes += size_bytes - before[1]

    def forget(self, collection: str) -> None:
        """Takes a deleted collection out."""
        self.set(collection, 0, 0)
        del self._collections[collection]


class Usages:
    """The usage of every account that has an open collection, which holds on to it."""

    def __init__(self) -> None:
        self._accounts: WeakValueDictionary[str, Usage] = WeakValueDictionary()

    def of(self, account: str) -> Usage | None:
        """An account's usage, if it is known."""
        return self._accounts.get(account)

    def begin(self, account: str, stored: Iterable[tuple[str, int, int]]) -> Usage:
        """An account's usage as it is stored: collection, points, bytes. What is known already is newer."""
        known = self._accounts.get(account)
        if known is None:
            known = self._accounts[account] = Usage()
            for collection, points, size_bytes in stored:
                known.set(collection, points, size_bytes)
        return known


def check(caps: Caps, usage: Usage, collection: tuple[int, int], added: tuple[int, int]) -> None:
    """Raises ResourceExhausted if points and bytes are more than a collection or its account may hold."""
    (points, size_bytes), (more, more_bytes) = collection, added
    all_points, all_bytes = usage.points + more, usage.size_bytes + more_bytes
    violations = [
        *_over("points of a collection", points + more, caps.collection_points, more),
        *_over("bytes of a collection in memory", size_bytes + more_bytes, caps.collection_bytes, more_bytes),
    ]
    if violations:
        raise ResourceExhausted(
            "the collection is full; delete points or use another",
            reason="COLLECTION_FULL",
            quotas=violations,
        )
    violations = [
        *_over("points of an account", all_points, caps.account_points, more),
        *_over("bytes of an account in memory", all_bytes, caps.account_bytes, more_bytes),
    ]
    if violations:
        raise ResourceExhausted(
            "the account is full; delete points or collections", reason="ACCOUNT_FULL", quotas=violations
        )


def _over(subject: str, wanted: int, most: int, added: int) -> list[QuotaViolation]:
    if wanted <= most or not added:
        return []
    return [QuotaViolation(subject, f"the limit is {most}, and there would be {wanted}")]
