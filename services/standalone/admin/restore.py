"""A backup put in the place of an installation that is new or lost; the services must not run.

Every part is proved before anything is put back, objects as they are. A mark lies beside the data until
all is done: with it nothing starts, and the command is repeated. What was deleted after the backup stays
deleted, by the ledger that is there now; who was suspended or disabled since must be so again
(docs/backup.md).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.common.clock import Clock
from services.common.methods import GATEWAY, INGEST, KEYVAULT, VECTORSTORE
from services.common.objects import ObjectStore, open_store
from services.keyvault.backup import BackupRefused
from services.keyvault.backup import restore as restore_keyvault
from services.keyvault.kms.selection import open_kms
from services.standalone.admin import store
from services.standalone.admin.backup import Backup, prove, write_private
from services.standalone.admin.managed import Managed
from services.standalone.config import RESTORING
from services.standalone.pki import write_file

_SQLITE = "sqlite:///"
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back."""

    accounts: int
    destroyed_again: int
    objects: int


async def restore(managed: Managed, backup: Backup, clock: Clock, say: Callable[[str], None]) -> Restored:
    """Puts the backup back. Raises BackupRefused, DatabaseAway, DataFolderInUse."""
    say("proving the backup")
    prove(backup)
    mark = managed.folder / RESTORING
    managed.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with managed.stopped():
        if mark.exists():
            if mark.read_text().strip() != backup.id:
                raise BackupRefused("another backup was half put back here; move that data away first")
        else:
            for service in (INGEST, VECTORSTORE, GATEWAY, KEYVAULT):
                if not store.is_new(managed.of(service).database_url):
                    raise BackupRefused(f"{service} has a database already; move the data away first")
        write_file(mark, backup.id.encode())
        count = 0
        for service, url in managed.objects.items():
            say(f"{service}: objects")
            count += _put_objects(backup, service, open_store(url))
        for service in (INGEST, VECTORSTORE, GATEWAY):
            say(f"{service}: database")
            _put_database(managed, backup, service)
        say(f"{KEYVAULT}: database, and what was deleted since")
        accounts, again = await _put_keyvault(managed, backup, clock)
        mark.unlink()
    return Restored(accounts, again, count)


def _put_objects(backup: Backup, service: str, objects: ObjectStore) -> int:
    try:
        # As the service itself does at its start: what is another installation's is not written to.
        objects.claim(store.id_of(backup.database(service)))
    except ValueError as error:
        raise BackupRefused(f"the objects of {service}: {error}") from None
    count = 0
    present = set(objects.list(""))
    for digest, key in backup.listed(service):
        count += 1
        # One that is there may have been sealed anew since, under a key that the backup does not have.
        if key not in present or _digest_of(objects.stream(key)) != digest:
            objects.put(key, _proved(backup.folder / "objects" / service / key, digest))
    return count


def _digest_of(parts: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _proved(path: Path, digest: str) -> Iterator[bytes]:
    """A file's content; it fails at the end, before the object is there, where it is not what it was."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                found.update(block)
                yield block
    except OSError as error:
        raise BackupRefused(f"{path}: {error.strerror}") from None
    if found.hexdigest() != digest:
        raise BackupRefused(f"{path} is not what was written; the backup is damaged")


def _put_database(managed: Managed, backup: Backup, service: str) -> None:
    url = managed.of(service).database_url
    if not url.startswith(_SQLITE):
        _put_rows(backup.database(service), url, service)
        return
    target = Path(url.removeprefix(_SQLITE))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(target.name + ".restoring")
    part.unlink(missing_ok=True)
    # A file as any other: whole under its name, or not there; and never open to others.
    write_private(part, _proved(backup.database(service), backup.databases[service]))
    part.replace(target)
    store.sync(target.parent)


def _put_rows(source: Path, url: str, service: str) -> None:
    # All rows are there, or the database has not got the copy's name yet.
    if store.is_new(url) or not store.is_copy_of(url, source, service):
        store.copy_in(source, url, service)


async def _put_keyvault(managed: Managed, backup: Backup, clock: Clock) -> tuple[int, int]:
    """By keyvault's own way back, which proves the chains and destroys again what the ledger says."""
    settings = managed.keyvault
    kms = open_kms(settings, clock)
    try:
        if settings.database_file is not None:
            settings.database_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            restored = await restore_keyvault(settings, kms, backup.database(KEYVAULT), clock)
            return restored.accounts, restored.destroyed_again
        with tempfile.TemporaryDirectory(dir=managed.folder) as folder:
            proved = Path(folder) / "keyvault.db"
            own = settings.model_copy(update={"database_url": f"{_SQLITE}{proved}"})
            restored = await restore_keyvault(own, kms, backup.database(KEYVAULT), clock)
            _put_rows(proved, settings.database_url, KEYVAULT)
        return restored.accounts, restored.destroyed_again
    finally:
        await kms.close()
