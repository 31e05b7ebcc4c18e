"""Whether the storage takes writes, as the last attempt found, for people and for balancers.

A full or failing disk stops writes and nothing else: reads go on, and the next write that is
taken ends it without anybody's help. This only tells; it refuses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from prometheus_client import Counter, Gauge

_log = structlog.get_logger("storage")
_refused = Counter(
    "sealcomb_storage_refusals_total", "Writes that the storage refused", ["service", "reason"]
)
_writable = Gauge("sealcomb_storage_writable", "Whether the storage took the last write: 1 or 0", ["service"])
_SERVICE = "vectorstore"


class Writability:
    """What the last write found. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._takes = True
        # Told of each change, in the thread that found it.
        self.on_change: Callable[[bool], None] = lambda _takes: None
        _writable.labels(_SERVICE).set(1)

    def refused(self, reason: str) -> None:
        """A write was refused, for a reason from a fixed set."""
        _refused.labels(_SERVICE, reason).inc()
        if self._changes(False):
            _log.error("writes are refused until the storage takes one again; reads go on", reason=reason)

    def taken(self) -> None:
        """A write is durable."""
        if self._changes(True):
            _log.info("the storage takes writes again")

    def _changes(self, takes: bool) -> bool:
        with self._lock:
            changed, self._takes = self._takes != takes, takes
            if changed:
                _writable.labels(_SERVICE).set(int(takes))
                self.on_change(takes)
        return changed
