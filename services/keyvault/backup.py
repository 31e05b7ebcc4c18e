"""A copy of keyvault's database while it runs, and the way back.

A copy holds wrapped keys and the audit chains, and opens nothing without the KMS; so it is never
written beside the root key. Putting one back never brings back what was destroyed after it was made:
the ledger is applied to the copy before it takes the database's place. Until that last step, a
rename, nothing of the present database is touched, and it is kept beside the restored one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from services.common.clock import Clock
from services.keyvault.chain import AuditChain
from services.keyvault.completion import Completion
from services.keyvault.config import KeyvaultSettings
from services.keyvault.events import KeyEvents
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.ledger import Ledger
from services.keyvault.reconciliation import Reconciliation
from services.keyvault.statements import StatementSigner
from services.keyvault.store import DatabaseUnreadable, Store, check_copy, copy_database
from services.keyvault.vault import Vault

_BLOCK_BYTES = 1024 * 1024


class BackupRefused(ValueError):
    """The copy cannot be made, or is not one to put back; says why."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back: its accounts, and what was destroyed again in it."""

    accounts: int
    destroyed_again: int


def back_up(settings: KeyvaultSettings, target: Path) -> None:
    """Writes a consistent, checked copy of the database to a new file, also while keyvault runs."""
    database = _database(settings)
    for what, secret in (("root key", settings.root_key_file), ("ledger", settings.ledger)):
        if secret is not None and target.resolve().parent == secret.resolve().parent:
            raise BackupRefused(f"a backup does not belong into the folder of the {what}; write it elsewhere")
    if not database.exists():
        raise BackupRefused("there is no database to back up")
    part = target.with_name(target.name + ".part")
    try:
        # Made by us first, so that it is never open to others.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise BackupRefused(f"the backup cannot be written: {error.strerror}") from None
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        copy_database(settings.database_url, part)
        check_copy(part)
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    except (DatabaseUnreadable, OSError) as error:
        target.unlink(missing_ok=True)
        raise BackupRefused(f"the backup failed: {error}") from None
    finally:
        part.unlink(missing_ok=True)


async def restore(settings: KeyvaultSettings, kms: KmsRegistry, source: Path, clock: Clock) -> Restored:
    """Puts a copy in the place of the database, once it proved whole. Keyvault must not run."""
    database = _database(settings)
    if settings.ledger is None:
        raise BackupRefused("without a ledger a copy brings deleted accounts back; set SEALCOMB_LEDGER_FILE")
    signer = StatementSigner.from_file(settings.context_key_file)
    # Held until the end, so that no keyvault runs meanwhile.
    ledger = Ledger(settings.ledger, signer)
    copy = database.with_name(database.name + ".restoring")
    try:
        _copy_file(source, copy)
        check_copy(copy)
        store = Store.open(f"sqlite:///{copy}")
        try:
            restored = await _prove(store, kms, ledger, clock)
            await store.scrub()
        finally:
            store.close()
        _sync(copy)
        _put_in_place(copy, database)
    except DatabaseUnreadable as error:
        raise BackupRefused(f"this is no whole copy of a database: {error}") from None
    except OSError as error:
        raise BackupRefused(f"the copy cannot be put back: {error.strerror}") from None
    finally:
        for suffix in ("", "-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        ledger.close()
    return restored


async def _prove(store: Store, kms: KmsRegistry, ledger: Ledger, clock: Clock) -> Restored:
    await Vault(store, kms, KeyEvents(), clock, Completion()).bind_installation()
    chain = AuditChain(store)
    accounts = await store.read(lambda tx: tx.account_ids())
    for account in accounts:
        bad = await chain.first_bad(account)
        if bad is not None:
            raise BackupRefused(f"the audit chain of account {account} does not hold at record {bad}")
    again = await Reconciliation(store, ledger, clock).at_restore()
    return Restored(len(accounts), again)


def _put_in_place(copy: Path, database: Path) -> None:
    replaced = database.with_name(database.name + ".replaced")
    number = 1
    while replaced.exists():
        number += 1
        replaced = database.with_name(f"{database.name}.replaced-{number}")
    # The write-ahead log goes with its database: beside another one it would be taken for that one's.
    for suffix in ("-wal", "-shm", ""):
        present = database.with_name(database.name + suffix)
        if present.exists():
            present.replace(replaced.with_name(replaced.name + suffix))
    copy.replace(database)
    _sync(database.parent)


def _database(settings: KeyvaultSettings) -> Path:
    if settings.database_file is None:
        raise BackupRefused("only an SQLite database is backed up by this; use the database's own tools")
    return settings.database_file


def _copy_file(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as written, source.open("rb") as read:
        shutil.copyfileobj(read, written, _BLOCK_BYTES)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
