"""The release of data keys: to the right peer, for the context's account, and never unrecorded.

A release is decided twice: once to know what to unwrap, and again in the transaction that records
it, under the account's lock. The key leaves only after that transaction is durable, so no release
is missing from the audit chain, and none is later than the answer to a disable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from services.common import ids
from services.common.clock import Clock
from services.common.errors import (
    Aborted,
    ResourceExhausted,
    SealcombError,
    invalid,
)
from services.common.sealing import KEY_BYTES, DataKey
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.completion import Completion
from services.keyvault.events import KeyChange, KeyEvents
from services.keyvault.kms.protocol import Kms
from services.keyvault.policy import AccountUnknown, KeyUnknown
from services.keyvault.receipts import record_destruction
from services.keyvault.records import AccountKey, AccountRecord, DataKeyRecord, Wrapping
from services.keyvault.refusals import RecordedRefusals, RefusalKind
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_TRIES = 5
_DATA_KEYS_MAX = 100_000
# After so many releases a data key has another take its place (docs/sealed-format.md has the sum).
RELEASES_MAX = 2**24


@dataclass(frozen=True, slots=True)
class _Found:
    account: AccountRecord | None
    key: AccountKey | None
    record: DataKeyRecord | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What would be released, `made` just now or found; or why nothing may be."""

    record: DataKeyRecord | None = None
    made: bool = False
    refusal: SealcombError | None = None


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the transaction decided, and whether the audit chain says so."""

    refusal: SealcombError | None
    recorded: bool


class Releases:
    """Data keys of all accounts."""

    def __init__(
        self,
        store: Store,
        kms: Kms,
        events: KeyEvents,
        clock: Clock,
        completion: Completion,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        releases_max: int = RELEASES_MAX,
    ) -> None:
        self._store = store
        self._kms = kms
        self._events = events
        self._clock = clock
        self._completion = completion
        self._random_bytes = random_bytes
        self._releases_max = releases_max
        self._refusals = RecordedRefusals()

    async def release(self, asker: Asker, resource: str, purpose: str, key_id: str = "") -> DataKey:
        """A data key of the asker's account; the current one, made if need be, where `key_id` is empty."""
        policy.check_names(resource, purpose)
        if key_id and not ids.is_id(key_id):
            raise invalid("key_id", "is not an id")
        wanted = Wrapping(asker.account, resource, purpose, key_id)
        for _ in range(_TRIES):
            candidate, secret = await self._candidate(asker, wanted)
            try:
                settled = await self._store.write(partial(self._settle, asker, wanted, candidate))
            except BaseException:
                # It is not known whether the account is off.
                self._kms.forget(asker.account)
                raise
            if settled is None:
                continue
            if settled.refusal is not None:
                if isinstance(settled.refusal, policy.OFF):
                    # It may have been turned off since the KMS was asked, which then holds its key again.
                    self._kms.forget(asker.account)
                if settled.recorded:
                    self._refusals.note(_kind(asker, wanted, settled.refusal), self._clock.monotonic_s())
                raise settled.refusal
            if candidate.record is None:
                raise KeyUnknown
            return DataKey(candidate.record.wrapping.key_id, secret)
        raise Aborted("the key was changed by other calls at the same time; repeat the call")

    async def destroy(self, asker: Asker, resource: str) -> None:
        """Destroys every data key of a resource, for good; no error if that was done already."""
        if not ids.is_id(resource):
            raise invalid("resource", "is not an id")
        await self._completion.run(self._destroy(asker, resource))

    async def _destroy(self, asker: Asker, resource: str) -> None:
        refusal = await self._store.write(partial(self._delete_keys, asker, resource))
        if refusal is not None:
            raise refusal
        self._events.publish(KeyChange.RESOURCE_DESTROYED, asker.account, resource)
        await self._store.scrub()

    async def _candidate(self, asker: Asker, wanted: Wrapping) -> tuple[_Candidate, bytes]:
        found = await self._store.read(partial(_look, wanted))
        refusal = (
            policy.peer_refusal(asker.peer, wanted.purpose)
            or policy.work_refusal(asker.context.method, asker.context.bearer, wanted.purpose)
            or policy.account_refusal(found.account)
            or policy.scope_refusal(asker.context.collection_ids, wanted.resource, wanted.purpose)
        )
        # Checked here as well, so that the KMS never works for somebody who is refused.
        if refusal is not None or found.key is None:
            return _Candidate(refusal=refusal), b""
        try:
            if found.record is not None and not self._is_worn(wanted, found.record):
                secret = await self._kms.unwrap(found.key, found.record.wrapping, found.record.wrapped)
                return _Candidate(found.record), secret
            if wanted.key_id:
                return _Candidate(), b""
            secret = self._random_bytes(KEY_BYTES)
            fresh = Wrapping(
                wanted.account, wanted.resource, wanted.purpose, ids.from_bytes(self._random_bytes(16))
            )
            wrapped = await self._kms.wrap(found.key, fresh, secret)
            return _Candidate(DataKeyRecord(fresh, found.key.version, wrapped), made=True), secret
        except SealcombError as error:
            return _Candidate(refusal=error), b""

    def _is_worn(self, wanted: Wrapping, record: DataKeyRecord) -> bool:
        # A key that is asked for by its id is to open with, which wears nothing.
        return not wanted.key_id and record.releases >= self._releases_max

    # What follows runs inside a transaction.

    def _settle(
        self, asker: Asker, wanted: Wrapping, candidate: _Candidate, tx: Transaction
    ) -> _Settled | None:
        """Records the release or its refusal; None where the candidate is no longer the right one."""
        account = tx.account(asker.account)
        if account is None:
            # There is no chain to record it in.
            return _Settled(AccountUnknown(), recorded=False)
        now_us = int(self._clock.now_s() * 1e6)
        refusal = (
            policy.peer_refusal(asker.peer, wanted.purpose)
            or policy.work_refusal(asker.context.method, asker.context.bearer, wanted.purpose)
            or policy.account_refusal(account)
            or _permit_refusal(asker, now_us, tx)
            or policy.scope_refusal(asker.context.collection_ids, wanted.resource, wanted.purpose)
            or candidate.refusal
        )
        record = candidate.record
        if refusal is None and record is not None and candidate.made:
            present = tx.data_key(wanted)
            worn = present is not None and self._is_worn(wanted, present)
            if (present is not None and not worn) or account.version != record.version:
                return None
            refusal = _making_refusal(account, wanted, tx)
            if refusal is None:
                if present is not None:
                    tx.age_data_key(present.wrapping.key_id, now_us)
                tx.add_data_key(record, now_us)
        elif refusal is None and (record is None or tx.data_key(record.wrapping) is None):
            refusal = KeyUnknown()
        if refusal is not None:
            kind = _kind(asker, wanted, refusal)
            if self._refusals.holds(kind, self._clock.monotonic_s()):
                return _Settled(refusal, recorded=False)
        if refusal is None and record is not None and not wanted.key_id:
            tx.count_release(record.wrapping.key_id)
        action = "key.create" if candidate.made else "key.release"
        tx.append(account, asker.act(now_us, action, wanted.resource, refusal))
        return _Settled(refusal, recorded=True)

    def _delete_keys(self, asker: Asker, resource: str, tx: Transaction) -> SealcombError | None:
        account = tx.account(asker.account)
        if account is None:
            return AccountUnknown()
        now_us = int(self._clock.now_s() * 1e6)
        purposes = tx.purposes(account.id, resource)
        refusal = policy.destroy_refusal(asker.peer, asker.context.method, purposes)
        if refusal is None:
            record_destruction(tx, account.id, resource, now_us)
            tx.destroy_resource(account.id, resource, now_us)
        tx.append(account, asker.act(now_us, "resource.destroy", resource, refusal))
        return refusal


def _look(wanted: Wrapping, tx: Transaction) -> _Found:
    account = tx.account(wanted.account)
    if account is None:
        return _Found(None, None, None)
    record = tx.data_key(wanted)
    version = account.version if record is None else record.version
    return _Found(account, tx.account_key(wanted.account, version), record)


def _kind(asker: Asker, wanted: Wrapping, refusal: SealcombError) -> RefusalKind:
    return asker.account, asker.peer, wanted.purpose, refusal.reason


def _making_refusal(account: AccountRecord, wanted: Wrapping, tx: Transaction) -> SealcombError | None:
    if tx.is_destroyed(account.id, wanted.resource):
        return KeyUnknown()
    if account.data_keys >= _DATA_KEYS_MAX:
        return ResourceExhausted(f"the account has {_DATA_KEYS_MAX} data keys; delete collections first")
    return None


def _permit_refusal(asker: Asker, now_us: int, tx: Transaction) -> SealcombError | None:
    if not asker.context.bearer:
        return None
    permit = tx.permit(asker.account, asker.context.job_id)
    return policy.permit_refusal(permit, asker.peer, now_us, asker.context.audience)
