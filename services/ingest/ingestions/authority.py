"""Under whose authority an ingestion works when nobody calls: permits, exchanged for its grant.

The grant stands in the row: signed by keyvault, without names, for one collection. It opens nothing; keyvault
exchanges it for a permit of minutes as long as the job is open, the account not suspended and its key
enabled. Every step of the work runs under a permit that is fresh enough to last for it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from services.common.clock import Clock
from services.common.context import CallContext, Caller

PERMIT_S = 900
# Longer than any step of the work may take.
_LEFT_S_MIN = 600.0


class Permits(Protocol):
    """Keyvault's side."""

    async def issue_grant(self, job_id: str, collection_id: str) -> str:
        """A grant of the current caller, for one collection."""

    async def renew_permit(self, grant: str, ttl_s: int) -> str:
        """A permit of the grant's job."""

    async def end_permit(self, job_id: str) -> None:
        """Ends the job's grant and permits, under the current caller."""


class Authority:
    """The permits of one job."""

    def __init__(self, permits: Permits, grant: str, account: str, grant_id: str, clock: Clock) -> None:
        self._permits = permits
        self._grant = grant
        self._account = account
        self._grant_id = grant_id
        self._clock = clock
        self._caller: Caller | None = None
        self._renewing = asyncio.Lock()

    async def caller(self) -> Caller:
        """The caller to act as. Raises what keyvault refuses with: ended, suspended, disabled."""
        async with self._renewing:
            caller = self._caller
            if caller is None or caller.context.expires_s - self._clock.now_s() < _LEFT_S_MIN:
                caller = self._caller = await self._renew()
            return caller

    async def _renew(self) -> Caller:
        now_s = self._clock.now_s()
        text = await self._permits.renew_permit(self._grant, PERMIT_S)
        # What the text says for others; here only the account is used.
        context = CallContext(
            issuer="keyvault",
            audience=(),
            account=self._account,
            token_id="",
            scopes=(),
            collections=(),
            method="",
            issued_s=now_s,
            expires_s=now_s + PERMIT_S,
            request_id="",
            job_id=self._grant_id,
            bearer="ingest",
        )
        return Caller(context, text)
