"""Permits: contexts for work that outlives its call, bound to one account, one peer and one job.

A permit opens nothing that the call's own context would not have opened, and keyvault asks at
each release whether its job is still open. A job's permit that has ended is never issued again.

Standing work (a long ingestion, a schedule) has a grant as well: a signed text that opens nothing
and is good for one thing, to be exchanged here for a permit of the same job. It ends with the job, and,
like every permit, when the account is suspended or its key disabled.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from services.common import ids, methods
from services.common.clock import Clock
from services.common.context import (
    GRANT_AUDIENCE,
    GRANT_LIFE_S_MAX,
    CallContext,
    ContextRefused,
    ContextSigner,
    ContextVerifier,
)
from services.common.errors import AlreadyExists, PermissionDenied, ResourceExhausted, SealcombError, invalid
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.config import PERMIT_S_MAX
from services.keyvault.policy import AccountUnknown
from services.keyvault.records import PermitRecord
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

TTL_S_MAX = PERMIT_S_MAX
_AUDIENCE = (methods.VECTORSTORE, methods.KEYVAULT)
_PERMITS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Issued:
    """A permit, and the grant of standing work."""

    permit: str = field(repr=False)
    grant: str = field(default="", repr=False)


class Permits:
    """Issues and ends permits."""

    def __init__(self, store: Store, signer: ContextSigner, grants: ContextVerifier, clock: Clock) -> None:
        self._store = store
        self._signer = signer
        self._grants = grants
        self._clock = clock

    async def issue(
        self, asker: Asker, job_id: str, ttl_s: int, *, collection_id: str = "", standing: bool = False
    ) -> Issued:
        """A permit for the asking peer, under the asker's own context and for at most `ttl_s` seconds.

        With a collection id it is for that collection alone. Standing work gets a grant as well.
        """
        if not ids.is_id(job_id):
            raise invalid("job_id", "is not an id")
        _check_ttl(ttl_s)
        if collection_id and not ids.is_id(collection_id):
            raise invalid("collection_id", "is not an id")
        if standing and not collection_id:
            # A grant is kept for long, so it may hold no names, and opens one collection at most.
            raise invalid("collection_id", "is missing")
        if asker.context.bearer:
            raise PermissionDenied("a permit does not beget permits")
        now_s = self._clock.now_s()
        life_s = GRANT_LIFE_S_MAX - 1 if standing else ttl_s
        record = PermitRecord(asker.account, job_id, asker.peer, int((now_s + life_s) * 1e6), ended=False)
        refusal = await self._store.write(partial(self._issue, asker, record))
        if refusal is not None:
            raise refusal
        context = replace(asker.context, issuer=methods.KEYVAULT, job_id=job_id, bearer=asker.peer)
        if collection_id:
            context = replace(context, collections=(), collection_ids=(collection_id,))
        permit = self._sign(context, _AUDIENCE, now_s, ttl_s)
        return Issued(permit, self._sign(context, (GRANT_AUDIENCE,), now_s, life_s) if standing else "")

    async def renew(self, peer: str, grant: str, ttl_s: int) -> str:
        """A permit of a grant's job, for at most `ttl_s` seconds.

        Raises PermitEnded once the job has ended, and what the account's state refuses.
        """
        _check_ttl(ttl_s)
        context = self._grants.verify(grant)
        if context.bearer != peer:
            raise ContextRefused("a grant is not for this peer")
        refusal = await self._store.write(partial(self._renew, Asker(peer, context)))
        if refusal is not None:
            raise refusal
        now_s = self._clock.now_s()
        return self._sign(context, _AUDIENCE, now_s, min(ttl_s, context.expires_s - now_s))

    async def end(self, asker: Asker, job_id: str) -> None:
        """Ends a job's permit; no error if there is none."""
        if not ids.is_id(job_id):
            raise invalid("job_id", "is not an id")
        if asker.context.bearer and asker.context.job_id != job_id:
            raise PermissionDenied("a permit ends itself alone")
        await self._store.write(partial(self._end, asker, job_id))

    def _sign(self, context: CallContext, audience: tuple[str, ...], now_s: float, life_s: float) -> str:
        return self._signer.sign(
            replace(context, audience=audience, issued_s=now_s, expires_s=now_s + life_s)
        )

    # What follows runs inside a transaction.

    def _renew(self, asker: Asker, tx: Transaction) -> SealcombError | None:
        now_us = int(self._clock.now_s() * 1e6)
        account = tx.account(asker.account)
        if account is None:
            return AccountUnknown()
        refusal = policy.account_refusal(account) or policy.permit_refusal(
            tx.permit(asker.account, asker.context.job_id), asker.peer, now_us
        )
        tx.append(account, asker.act(now_us, "permit.renew", asker.context.job_id, refusal))
        return refusal

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


def _check_ttl(ttl_s: int) -> None:
    if not 1 <= ttl_s <= TTL_S_MAX:
        raise invalid("ttl_s", f"is not between 1 and {TTL_S_MAX}")
