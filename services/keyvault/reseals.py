"""Leave to seal an account's data anew while nobody calls, taken when its data keys are replaced.

Who may replace an account's data keys thereby lets vectorstore and ingest seal what is there under the new
ones. Each of the two has a job for that, with a permit like any other: recorded, and ended by whatever
ends permits. A service asks what is due and gets some resources of one account and a permit of minutes for
its job. That permit opens keys of sealed data alone, of the account alone; how much is handed
out, and how soon again, is the rate. The job ends when nothing is left under replaced keys, or with its time.

This module must never hand out what no owner asked for, or anything of an account that is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from services.common import methods
from services.common.clock import Clock
from services.common.context import CallContext, ContextSigner
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.records import AccountRecord, PermitRecord, ResealRecord
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

# Of these one is handed out, so that its permit is new when its turn comes; leave that is over ends.
_LOOKED_AT_MAX = 16
_RESOURCES_MAX = 100
_TTL_S = 900
# A pass and the one an hour later take little of it; the rest is for services that are away.
_LIFE_US = 2 * 86_400_000_000
# Until an account's next resources, and until its first ones again.
_NEXT_US = 60_000_000
_AGAIN_US = 900_000_000
_AUDIENCE = (methods.VECTORSTORE, methods.KEYVAULT)


@dataclass(frozen=True, slots=True)
class Due:
    """What a service is to seal anew now."""

    account: str
    resources: list[str]
    permit: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Taken:
    """The same before its permit is signed."""

    reseal: ResealRecord
    resources: list[str]


class Reseals:
    """Hands out what is due."""

    def __init__(self, store: Store, signer: ContextSigner, clock: Clock) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock

    async def due(self, peer: str) -> list[Due]:
        """What a service is to seal anew now; what is handed out is not due again for some minutes."""
        now_us = self._now_us()
        # Most looks find nothing, and a look alone writes nothing.
        if not await self._store.read(lambda tx: tx.reseals_due(peer, now_us, 1)):
            return []
        taken = await self._store.write(partial(_take, peer, now_us))
        if taken is None:
            return []
        return [Due(taken.reseal.account, taken.resources, self._permit(taken.reseal))]

    def _permit(self, reseal: ResealRecord) -> str:
        now_s = self._clock.now_s()
        return self._signer.sign(_context(reseal, now_s, now_s + _TTL_S))

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)


def begin(tx: Transaction, asker: Asker, job_ids: Mapping[str, str], now_us: int) -> None:
    """Takes leave for each service, in the transaction that replaces the data keys; older ones end."""
    tx.forget_expired_permits(now_us)
    for peer, job_id in job_ids.items():
        end(tx, asker.account, peer, now_us)
        tx.add_permit(PermitRecord(asker.account, job_id, peer, now_us + _LIFE_US, ended=False))
        act = asker.act(now_us, "")
        tx.add_reseal(ResealRecord(asker.account, peer, job_id, act.token_id, act.request_id, "", now_us))


def end(tx: Transaction, account: str, peer: str, now_us: int) -> None:
    """Ends the leave of a service, if it has one."""
    reseal = tx.reseal(account, peer)
    if reseal is not None:
        tx.end_permits(account, reseal.job_id)
        # Remembered for as long as one that was signed: whoever replaces keys all the time fills nothing.
        tx.shorten_permit(account, reseal.job_id, now_us + _TTL_S * 1_000_000)
        tx.delete_reseal(account, peer)


def _take(peer: str, now_us: int, tx: Transaction) -> _Taken | None:
    for reseal in tx.reseals_due(peer, now_us, _LOOKED_AT_MAX):
        resources = _resources(reseal, now_us, tx)
        if resources:
            return _Taken(reseal, resources)
    return None


def _resources(reseal: ResealRecord, now_us: int, tx: Transaction) -> list[str]:
    """The next resources of an account, put off for the time that they take; none where the job is over."""
    account = tx.account(reseal.account)
    if tx.reseal(reseal.account, reseal.peer) != reseal:
        # Another keyvault handed it out, or newer keys took new leave, before this one had the account.
        return []
    if account is None or not tx.count_aged(account.id, policy.RESEALERS[reseal.peer].purposes):
        end(tx, reseal.account, reseal.peer, now_us)
        return []
    permit = tx.permit(account.id, reseal.job_id)
    refusal = policy.account_refusal(account) or policy.permit_refusal(permit, reseal.peer, now_us)
    act = Asker(reseal.peer, _context(reseal, 0.0, 0.0)).act(now_us, "permit.renew", reseal.job_id, refusal)
    tx.append(account, act)
    if refusal is not None:
        end(tx, account.id, reseal.peer, now_us)
        return []
    return _next(account, reseal, now_us, tx)


def _next(account: AccountRecord, reseal: ResealRecord, now_us: int, tx: Transaction) -> list[str]:
    purposes = policy.RESEALERS[reseal.peer].purposes
    found = tx.aged_resources(account.id, purposes, reseal.after, _RESOURCES_MAX)
    whole = len(found) < _RESOURCES_MAX
    tx.put_off_reseal(
        account.id, reseal.peer, now_us + (_AGAIN_US if whole else _NEXT_US), "" if whole else found[-1]
    )
    return found


def _context(reseal: ResealRecord, issued_s: float, expires_s: float) -> CallContext:
    return CallContext(
        issuer=methods.KEYVAULT,
        audience=_AUDIENCE,
        account=reseal.account,
        token_id=reseal.token_id,
        scopes=("keys",),
        collections=(),
        method=policy.RESEALERS[reseal.peer].method,
        issued_s=issued_s,
        expires_s=expires_s,
        request_id=reseal.request_id,
        job_id=reseal.job_id,
        bearer=reseal.peer,
    )
