"""Permits: contexts for work that outlives its call, bound to one account, one peer and one job.

A permit opens nothing that the call's own context would not have opened, and keyvault asks at
each release whether its job is still open. A job's permit that has ended is never issued again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from services.common import ids, methods
from services.common.clock import Clock
from services.common.context import ContextSigner
from services.common.errors import AlreadyExists, PermissionDenied, ResourceExhausted, SealcombError, invalid
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.policy import AccountUnknown
from services.keyvault.records import PermitRecord
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

TTL_S_MAX = 3600
_AUDIENCE = (methods.VECTORSTORE, methods.KEYVAULT)
_PERMITS_MAX = 10_000


class Permits:
    """Issues and ends permits."""

    def __init__(self, store: Store, signer: ContextSigner, clock: Clock) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock

    async def issue(self, asker: Asker, job_id: str, ttl_s: int) -> str:
        """A permit for the asking peer, under the asker's own context and for at most `ttl_s` seconds."""
        if not ids.is_id(job_id):
            raise invalid("job_id", "is not an id")
        if not 1 <= ttl_s <= TTL_S_MAX:
            raise invalid("ttl_s", f"is not between 1 and {TTL_S_MAX}")
        if asker.context.bearer:
            raise PermissionDenied("a permit does not beget permits")
        now_s = self._clock.now_s()
        record = PermitRecord(asker.account, job_id, asker.peer, int((now_s + ttl_s) * 1e6), ended=False)
        refusal = await self._store.write(partial(self._issue, asker, record))
        if refusal is not None:
            raise refusal
        return self._signer.sign(
            replace(
                asker.context,
                issuer=methods.KEYVAULT,
                audience=_AUDIENCE,
                issued_s=now_s,
                expires_s=now_s + ttl_s,
                job_id=job_id,
                bearer=asker.peer,
            )
        )

    async def end(self, asker: Asker, job_id: str) -> None:
        """Ends a job's permit; no error if there is none."""
        if not ids.is_id(job_id):
            raise invalid("job_id", "is not an id")
        if asker.context.bearer and asker.context.job_id != job_id:
            raise PermissionDenied("a permit ends itself alone")
        await self._store.write(partial(self._end, asker, job_id))

    # What follows runs inside a transaction.

    def _issue(self, asker: Asker, record: PermitRecord, tx: Transaction) -> SealcombError | None:
        now_us = int(self._clock.now_s() * 1e6)
        account = tx.account(asker.account)
        if account is None:
            return AccountUnknown()
        tx.forget_expired_permits(now_us)
        refusal = policy.account_refusal(account)
        if refusal is None and tx.permit(account.id, record.job_id) is not None:
            refusal = AlreadyExists("the job has had its permit; begin another job")
        if refusal is None and tx.count_permits(account.id) >= _PERMITS_MAX:
            refusal = ResourceExhausted("too many jobs of the account are in progress; wait for some to end")
        if refusal is None:
            tx.add_permit(record)
        tx.append(account, asker.act(now_us, "permit.issue", record.job_id, refusal))
        return refusal

    def _end(self, asker: Asker, job_id: str, tx: Transaction) -> None:
        account = tx.account(asker.account)
        permit = tx.permit(asker.account, job_id)
        if account is None or permit is None or permit.ended or permit.peer != asker.peer:
            return
        tx.end_permits(asker.account, job_id)
        tx.append(account, asker.act(int(self._clock.now_s() * 1e6), "permit.end", job_id))
