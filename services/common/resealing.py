"""A service's background work of sealing data anew, under permits that keyvault hands out for it.

One resource at a time, with a pause as long as each took, so that it has half of one worker at most. What is
handed out and not done is handed out again, so nothing is remembered here. A refusal that concerns
the account (turned off, its permit ended) ends what was handed out of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from prometheus_client import Counter

from services.common.clock import Clock
from services.common.context import CallContext, Caller, acting_as
from services.common.errors import FailedPrecondition, PermissionDenied, SealcombError, Unauthenticated

_log = structlog.get_logger("resealing")
_LOOK_S = 10.0
_PAUSE_S = 0.2
_PAUSE_S_MAX = 10.0
_OVER = (FailedPrecondition, PermissionDenied, Unauthenticated)

_resealed = Counter(
    "sealcomb_resealed_total", "Resources looked at in the background, to be sealed anew", ["outcome"]
)


@dataclass(frozen=True, slots=True)
class Reseal:
    """Resources of an account that are to be sealed anew, and a permit for it."""

    account: str
    resources: tuple[str, ...]
    permit: str = field(repr=False)


class ResealPeer(Protocol):
    """Who hands them out: keyvault, or its twin in tests."""

    async def list_reseals(self) -> list[Reseal]:
        """What is due now."""


class Resealing:
    """Asks what is due and has it sealed anew."""

    def __init__(
        self,
        service: str,
        peer: ResealPeer,
        reseal: Callable[[str], Awaitable[None]],
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._service = service
        self._peer = peer
        self._reseal = reseal
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            await self._sleep(_LOOK_S)
            try:
                # An account is handed out at a time: what others have to do must not use up its permit.
                while await self.once():
                    pass
            except SealcombError as error:
                _log.warning("sealing anew waits", reason=error.reason)
            except Exception:  # noqa: BLE001  (the outermost loop of a worker)
                _log.exception("sealing anew failed")

    async def once(self) -> bool:
        """Does what is handed out now; whether that was anything."""
        handed_out = await self._peer.list_reseals()
        for reseal in handed_out:
            with acting_as(self._caller(reseal)):
                await self._account(reseal)
        return bool(handed_out)

    async def _account(self, reseal: Reseal) -> None:
        for resource in reseal.resources:
            began_s = self._clock.monotonic_s()
            try:
                await self._reseal(resource)
            except SealcombError as error:
                _resealed.labels(error.reason).inc()
                _log.warning(
                    "not sealed anew", account=reseal.account, resource=resource, reason=error.reason
                )
                if isinstance(error, _OVER):
                    return
            except Exception:  # noqa: BLE001  (one resource must not stand before all others)
                _resealed.labels("FAILED").inc()
                _log.exception("not sealed anew", account=reseal.account, resource=resource)
            else:
                _resealed.labels("OK").inc()
            took_s = self._clock.monotonic_s() - began_s
            await self._sleep(min(max(took_s, _PAUSE_S), _PAUSE_S_MAX))

    def _caller(self, reseal: Reseal) -> Caller:
        # What the permit says for others; here only the account is used.
        context = CallContext(
            issuer="keyvault",
            audience=(),
            account=reseal.account,
            token_id="",
            scopes=(),
            collections=(),
            method="",
            issued_s=0.0,
            expires_s=0.0,
            request_id="",
            bearer=self._service,
        )
        return Caller(context, reseal.permit)
