"""New data keys for what an account has, and the end of the old ones.

First every current data key of the purposes that can be sealed anew becomes an aged one: it opens
what it sealed, and the next request for the current key makes another. The services seal what they
have under the new one and then say which keys they still found. An aged key is destroyed only
when its service looked after everybody who might have sealed with it had finished, and did not find it.

This module must never destroy a key that something is sealed under.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from services.common import ids
from services.common.clock import Clock
from services.common.errors import SealcombError
from services.keyvault import policy, reseals
from services.keyvault.asker import Asker
from services.keyvault.completion import Completion
from services.keyvault.events import KeyChange, KeyEvents
from services.keyvault.policy import AccountUnknown
from services.keyvault.records import Wrapping
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

# What a service seals with a key that it took ends well within this: an upload takes at most 50 minutes.
AGED_FOR_S = 3600.0
_RESEALED = frozenset(purpose for one in policy.RESEALERS.values() for purpose in one.purposes)


@dataclass(frozen=True, slots=True)
class Aged:
    """What is left after a report: aged keys, and when those that are not in use can go (0: none waits)."""

    left: int
    destroyable_us: int


class Resealing:
    """The ages of all data keys."""

    def __init__(
        self,
        store: Store,
        events: KeyEvents,
        clock: Clock,
        completion: Completion,
        aged_for_s: float = AGED_FOR_S,
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock
        self._completion = completion
        self._aged_for_us = int(aged_for_s * 1e6)

    async def new_data_keys(self, asker: Asker) -> None:
        """Gives everything that can be sealed anew a new data key to be sealed under."""
        await self._completion.run(self._new_data_keys(asker))

    async def count_aged(self, account: str) -> int:
        """How many aged data keys the account has."""
        return await self._store.read(lambda tx: tx.count_aged(account))

    async def report(
        self, asker: Asker, resource: str, purpose: str, in_use: Collection[str], looked_us: int
    ) -> Aged:
        """Destroys the aged keys of a resource that its service did not find, looking from `looked_us` on."""
        policy.check_names(resource, purpose)
        wrapping = Wrapping(asker.account, resource, purpose, "")
        return await self._completion.run(self._report(asker, wrapping, frozenset(in_use), looked_us))

    async def _new_data_keys(self, asker: Asker) -> None:
        jobs = {peer: ids.new_id() for peer in policy.RESEALERS}
        refusal = await self._store.write(partial(self._age, asker, jobs))
        if refusal is not None:
            raise refusal
        self._events.publish(KeyChange.NEW_DATA_KEYS, asker.account)

    async def _report(self, asker: Asker, wrapping: Wrapping, in_use: frozenset[str], looked_us: int) -> Aged:
        answer = await self._store.write(partial(self._destroy, asker, wrapping, in_use, looked_us))
        if isinstance(answer, SealcombError):
            raise answer
        await self._store.scrub()
        return answer

    # What follows runs inside a transaction.

    def _age(self, asker: Asker, jobs: dict[str, str], tx: Transaction) -> SealcombError | None:
        account = tx.account(asker.account)
        if account is None:
            return AccountUnknown()
        now_us = self._now_us()
        refusal = policy.account_refusal(account)
        if refusal is None:
            tx.age_data_keys(account.id, _RESEALED, now_us)
            reseals.begin(tx, asker, jobs, now_us)
        tx.append(account, asker.act(now_us, "data_key.rotate", refusal=refusal))
        return refusal

    def _destroy(
        self, asker: Asker, wrapping: Wrapping, in_use: frozenset[str], looked_us: int, tx: Transaction
    ) -> Aged | SealcombError:
        account = tx.account(asker.account)
        if account is None:
            return AccountUnknown()
        now_us = self._now_us()
        refusal = (
            policy.account_refusal(account)
            or policy.report_refusal(asker.peer, asker.context.method, wrapping.purpose)
            or _permit_refusal(asker, now_us, tx)
        )
        if refusal is not None:
            tx.append(account, asker.act(now_us, "data_key.destroy", wrapping.resource, refusal))
            return refusal
        # Nobody has looked in the future.
        looked_us = min(looked_us, now_us)
        aged = tx.aged_data_keys(wrapping)
        unused = [key for key in aged if key.key_id not in in_use]
        gone = [key.key_id for key in unused if key.aged_us + self._aged_for_us <= looked_us]
        if gone:
            tx.destroy_data_keys(account.id, gone)
            tx.append(account, asker.act(now_us, "data_key.destroy", wrapping.resource))
        waiting = [key.aged_us + self._aged_for_us for key in unused if key.key_id not in gone]
        return Aged(len(aged) - len(gone), max(waiting, default=0))

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)


def _permit_refusal(asker: Asker, now_us: int, tx: Transaction) -> SealcombError | None:
    """Why what works under a permit may not report: it is not, or no longer, the job that was given leave."""
    if not asker.context.bearer:
        return None
    leave = tx.reseal(asker.account, asker.peer)
    if leave is None or leave.job_id != asker.context.job_id:
        return policy.PermitEnded()
    return policy.permit_refusal(tx.permit(asker.account, leave.job_id), asker.peer, now_us)
