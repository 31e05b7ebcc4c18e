"""How many replicas of a service there are, and so how an account's bound on calls under way is shared out.

Each replica keeps the bound that a call's context names, and knows nothing of the others. So that all
together never let in more than the account may have, each is told its part: the bound divided by the
replicas that Envoy finds healthy. A call that all would have room for may be refused by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.common.methods import GATEWAY


class Replicas:
    """The replicas that were last seen."""

    def __init__(self, policies: Callable[[], int] = lambda: 1) -> None:
        # Each Envoy reaches its own policy process alone, so it cannot count these.
        self._policies = policies
        self._healthy: dict[str, int] = {}

    def note(self, healthy: Mapping[str, int]) -> None:
        """So many are healthy; a service of which nothing is said stays as it was."""
        self._healthy.update(healthy)

    def part_of(self, bound: int, service: str) -> int:
        """One replica's part of a bound, at least one call; 0, which is no bound, stays that."""
        count = self._policies() if service == GATEWAY else self._healthy.get(service, 1)
        return max(1, bound // max(1, count)) if bound else 0
