"""The gate in front of releases: how fast one service may ask for keys, counted and told.

A service that was taken over holds a good certificate and sees the contexts of calls in progress.
What it could open with those it opens no faster than the rate here, and what is refused to it raises
an alarm: a correct service asks for its own purposes alone, and for keys that exist. The gate is
one for each service, not for each account: an account's own pace is bounded at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter

from services.common.alarms import Alarms
from services.common.clock import Clock
from services.common.errors import ResourceExhausted, SealcombError
from services.common.sealing import DataKey
from services.keyvault.asker import Asker
from services.keyvault.policy import AccountUnknown, KeyUnknown, PermitEnded, PurposeRefused
from services.keyvault.releases import Releases

_BURST_S = 4.0
_SUSPECT = (PurposeRefused, KeyUnknown, AccountUnknown, PermitEnded)

_releases = Counter("sealcomb_key_releases_total", "Requests for data keys by outcome", ["peer", "outcome"])


class ReleaseRate(ResourceExhausted):
    """The peer asks for keys faster than any service needs them."""

    reason = "RELEASE_RATE"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("this service asks for too many keys; try again", retry_after_s=retry_after_s)


@dataclass(slots=True)
class _Bucket:
    level: float
    filled_s: float


class ReleaseGate:
    """Releases behind one token bucket for each peer."""

    def __init__(self, releases: Releases, clock: Clock, per_second: float, alarms: Alarms) -> None:
        self._releases = releases
        self._clock = clock
        self._rate = per_second
        self._alarms = alarms
        self._buckets: dict[str, _Bucket] = {}

    async def release(self, asker: Asker, resource: str, purpose: str, key_id: str = "") -> DataKey:
        """A data key as Releases gives it. Raises ReleaseRate as well."""
        try:
            self._spend(asker.peer)
            key = await self._releases.release(asker, resource, purpose, key_id)
        except SealcombError as error:
            _releases.labels(asker.peer, error.reason).inc()
            if isinstance(error, (*_SUSPECT, ReleaseRate)):
                self._alarms.note(asker.peer, error.reason)
            raise
        _releases.labels(asker.peer, "OK").inc()
        return key

    def _spend(self, peer: str) -> None:
        now_s = self._clock.monotonic_s()
        # The guard lets listed peers through alone, so there are few.
        bucket = self._buckets.setdefault(peer, _Bucket(self._rate * _BURST_S, now_s))
        bucket.level = min(
            self._rate * _BURST_S, bucket.level + max(0.0, now_s - bucket.filled_s) * self._rate
        )
        bucket.filled_s = now_s
        if bucket.level < 1:
            raise ReleaseRate((1 - bucket.level) / self._rate)
        bucket.level -= 1
