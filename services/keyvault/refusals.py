"""Which refusals were recorded a moment ago, so that one account's refused calls cannot fill the disk of all.

An account whose key is disabled may be asked for as often as its rate limit allows. The first
refusal of a kind in a minute is recorded in its audit chain; its repetitions are refused alike
and not recorded. A release is never left out.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

REPEAT_S = 60.0
_ENTRIES_MAX = 10_000

# Account, peer, purpose, and the reason of the refusal.
RefusalKind: TypeAlias = tuple[str, str, str, str]


class RecordedRefusals:
    """The kinds of refusals that the last minute's records hold; forgotten ones are recorded again."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[RefusalKind, float] = OrderedDict()

    def holds(self, kind: RefusalKind, now_s: float) -> bool:
        """Whether such a refusal was recorded less than a minute ago."""
        return now_s < self._until_s.get(kind, 0.0)

    def note(self, kind: RefusalKind, now_s: float) -> None:
        """Remembers that such a refusal is durably recorded."""
        self._until_s[kind] = now_s + REPEAT_S
        self._until_s.move_to_end(kind)
        if len(self._until_s) > _ENTRIES_MAX:
            self._until_s.popitem(last=False)
