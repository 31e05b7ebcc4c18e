"""The life of an account's KMS key: made once, disabled and enabled, destroyed (moves.py: rotated, bound).

Every change is durable and in the audit chain before it is answered, and told to the services at
once. An account has one key: making it again changes nothing, and a destroyed one never returns.
"""

from __future__ import annotations

import hmac
import re
from functools import partial

from services.common import ids
from services.common.clock import Clock
from services.common.errors import SealcombError, invalid
from services.keyvault.asker import Asker
from services.keyvault.completion import Completion
from services.keyvault.events import KeyChange, KeyEvents
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.policy import AccountUnknown, KeyPendingDeletion, known
from services.keyvault.receipts import record_destruction
from services.keyvault.records import AccountKey, AccountRecord, KeyState
from services.keyvault.retirement import Retirements
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

# The account of the installation itself; no id has this form.
INSTALLATION = "installation"
_FINGERPRINT = "kms"
_FILE = "file"
_WRONG = {_FILE: "the root key is not the one of this database; restore the right one"}
_WRONG_KMS = "the settings of the KMS {!r} name another one than this database's; set them back"
_ACTION = re.compile(r"(account|token)\.[a-z_]{1,40}")
_RESOURCE = re.compile(r"[0-9A-Za-z]{0,64}")


class WrongInstallation(ValueError):
    """The database belongs to another KMS."""


class Vault:
    """Accounts' keys, each in the KMS that its version names."""

    def __init__(
        self, store: Store, kms: KmsRegistry, events: KeyEvents, clock: Clock, completion: Completion
    ) -> None:
        self._store = store
        self._kms = kms
        self._events = events
        self._clock = clock
        # What was committed is also told, although the caller has hung up in between.
        self._completion = completion
        self._retirements = Retirements(store, kms)

    async def bind_installation(self) -> None:
        """Binds a database to each KMS that is new to it.

        Raises WrongInstallation for one that is bound to another of the kind, or needs one that is not here.
        """
        fingerprints = self._kms.fingerprints
        for missing in await self._store.read(lambda tx: tx.providers()) - fingerprints.keys():
            raise WrongInstallation(f"accounts have keys in the KMS {missing!r}; configure it as well")
        for provider, fingerprint in fingerprints.items():
            name = _FINGERPRINT if provider == _FILE else f"{_FINGERPRINT} {provider}"
            bound = await self._store.read(partial(_bound, name))
            if bound is None:
                bound = await self._store.write(partial(_bind, name, fingerprint))
            if not hmac.compare_digest(bound, fingerprint):
                raise WrongInstallation(_WRONG.get(provider, _WRONG_KMS.format(provider)))

    async def provision(self, asker: Asker) -> None:
        """Makes the account's key if there is none."""
        if not ids.is_id(asker.account) and asker.account != INSTALLATION:
            raise invalid("account", "is not an id")
        if await self._store.read(lambda tx: tx.account(asker.account)) is None:
            await self._completion.run(self._provision(asker))
        await self.describe(asker)

    async def describe(self, asker: Asker) -> AccountRecord:
        """The account as it is. Raises AccountUnknown."""
        return known(await self._store.read(lambda tx: tx.account(asker.account)))

    async def adopted_key(self, account: AccountRecord) -> KeyReference | None:
        """Which key of its own the account brought; None: a key of the installation's."""
        key = await self._store.read(lambda tx: tx.account_key(account.id, account.version))
        return None if key is None else self._kms.reference_of(key)

    async def disable(self, asker: Asker) -> AccountRecord:
        """Refuses every release from now on, and ends the account's permits."""
        return await self._completion.run(self._disable(asker))

    async def enable(self, asker: Asker) -> AccountRecord:
        """Allows releases again."""
        return await self._completion.run(self._enable(asker))

    async def set_suspended(self, asker: Asker, suspended: bool) -> None:
        """Suspends or resumes releases, whatever the state of the key; suspending ends its permits."""
        await self._completion.run(self._suspend(asker) if suspended else self._resume(asker))

    async def destroy(self, asker: Asker) -> None:
        """Destroys the account's key and its data keys, for good; no error if that was done already."""
        await self._completion.run(self._destroy(asker))

    async def destroy_due(self, asker: Asker) -> None:
        """The same if a deletion that was scheduled is due; else nothing."""
        await self._completion.run(self._destroy(asker, only_due=True))

    def forget(self, account: str) -> None:
        """Drops whatever the KMS holds in memory for the account."""
        self._kms.forget(account)

    async def record(self, asker: Asker, action: str, resource: str) -> None:
        """Adds an administrative act that happened elsewhere to the account's chain."""
        if not _ACTION.fullmatch(action):
            raise invalid("action", "is not account.* or token.*")
        if not _RESOURCE.fullmatch(resource):
            raise invalid("resource", "is not an id")
        await self._store.write(partial(self._append, asker, action, resource, None))

    async def _provision(self, asker: Asker) -> None:
        key = await self._kms.new_key(asker.account, 1)
        try:
            added = await self._store.write(partial(self._add_account, asker, key))
        except SealcombError:
            await self._retirements.discard(key)
            raise
        if not added:
            # Somebody else was first, so nothing was ever wrapped under this one.
            await self._retirements.discard(key)

    async def _disable(self, asker: Asker) -> AccountRecord:
        after = _or_raise(
            await self._store.write(partial(self._set_state, asker, KeyState.DISABLED, "key.disable"))
        )
        self._kms.forget(asker.account)
        self._events.publish(KeyChange.DISABLED, asker.account)
        return after

    async def _enable(self, asker: Asker) -> AccountRecord:
        after = _or_raise(
            await self._store.write(partial(self._set_state, asker, KeyState.ENABLED, "key.enable"))
        )
        self._events.publish(KeyChange.ENABLED, asker.account)
        return after

    async def _suspend(self, asker: Asker) -> None:
        await self._store.write(partial(self._set_suspended, asker, True))
        self._kms.forget(asker.account)
        self._events.publish(KeyChange.SUSPENDED, asker.account)

    async def _resume(self, asker: Asker) -> None:
        await self._store.write(partial(self._set_suspended, asker, False))
        self._events.publish(KeyChange.RESUMED, asker.account)

    async def _destroy(self, asker: Asker, *, only_due: bool = False) -> None:
        keys = await self._store.write(partial(self._delete_keys, asker, only_due))
        if keys is None:
            return
        self._kms.forget(asker.account)
        self._events.publish(KeyChange.ACCOUNT_DESTROYED, asker.account)
        await self._retirements.destroy(asker.account, keys)

    # What follows runs inside a transaction.

    def _add_account(self, asker: Asker, key: AccountKey, tx: Transaction) -> bool:
        if tx.account(asker.account) is not None:
            return False
        now_us = self._now_us()
        tx.add_account(key, now_us)
        tx.append(known(tx.account(asker.account)), asker.act(now_us, "key.provision"))
        return True

    def _set_state(
        self, asker: Asker, state: KeyState, action: str, tx: Transaction
    ) -> AccountRecord | SealcombError:
        account = known(tx.account(asker.account))
        if account.state is KeyState.PENDING_DELETION:
            refusal = KeyPendingDeletion()
            tx.append(account, asker.act(self._now_us(), action, refusal=refusal))
            return refusal
        tx.update_account(account.id, state=state.value)
        if state is not KeyState.ENABLED:
            tx.end_permits(account.id)
        tx.append(account, asker.act(self._now_us(), action))
        return known(tx.account(account.id))

    def _set_suspended(self, asker: Asker, suspended: bool, tx: Transaction) -> None:
        account = known(tx.account(asker.account))
        tx.update_account(account.id, suspended=suspended)
        if suspended:
            tx.end_permits(account.id)
        tx.append(account, asker.act(self._now_us(), "account.suspend" if suspended else "account.resume"))

    def _delete_keys(self, asker: Asker, only_due: bool, tx: Transaction) -> list[AccountKey] | None:
        account = tx.account(asker.account)
        if account is None:
            raise AccountUnknown
        if account.state is KeyState.DESTROYED:
            return []
        now_us = self._now_us()
        if only_due and now_us < (tx.deletion_due_us(account.id) or now_us + 1):
            return None
        keys = tx.account_keys(account.id)
        move = tx.move(account.id)
        if move is not None:
            keys.append(move.key)
        record_destruction(tx, account.id, "", now_us)
        tx.destroy_account(account.id)
        self._retirements.retire(tx, keys)
        tx.append(account, asker.act(now_us, "key.destroy"))
        return keys

    def _append(
        self, asker: Asker, action: str, resource: str, refusal: SealcombError | None, tx: Transaction
    ) -> None:
        account = tx.account(asker.account)
        if account is None:
            raise AccountUnknown
        tx.append(account, asker.act(self._now_us(), action, resource, refusal))

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)


def _bound(name: str, tx: Transaction) -> bytes | None:
    return tx.installation_value(name)


def _bind(name: str, fingerprint: bytes, tx: Transaction) -> bytes:
    """What is bound now: another keyvault may have been faster."""
    bound = tx.installation_value(name)
    if bound is None:
        tx.set_installation_value(name, fingerprint)
    return bound or fingerprint


def _or_raise(answer: AccountRecord | SealcombError) -> AccountRecord:
    if isinstance(answer, SealcombError):
        raise answer
    return answer
