"""A whole installation in a folder, and the way back. Only what is sealed, ids and times leave.

    <folder>/manifest.json          written last: without it the folder is no backup
    <folder>/<service>.db           each service's database as an SQLite file
    <folder>/objects/<service>/...  sealed objects under their own keys
    <folder>/<service>.sums         a line for each object: SHA-256 in hex, two spaces, the key

The order makes it one moment's, also while the installation works. Ingest's database first: what it does
not know yet it does again. Then the objects, vectorstore's database, and the objects that came
meanwhile: the database names only objects that were there before it was copied. If one of those went
away before it was copied, all of this step is done again. Then the gateway's database, and keyvault's
last, so that it has every key that the data was sealed under; an original that was sealed anew
meanwhile, and whose key is gone from there, is copied again. The root key, the certificates and the
ledger are never part of it (docs/backup.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common.clock import Clock
from services.common.errors import NotFound
from services.common.methods import GATEWAY, INGEST, KEYVAULT, VECTORSTORE
from services.common.objects import ObjectStore, open_store
from services.common.sealing import HEADER_BYTES, OpenFailed, key_id_of
from services.keyvault.backup import BackupRefused
from services.keyvault.backup import back_up as back_up_keyvault
from services.standalone.admin import store
from services.standalone.admin.managed import Managed
from services.standalone.admin.status import version

FORMAT = 1
MANIFEST = "manifest.json"
ORDER = (INGEST, VECTORSTORE, GATEWAY, KEYVAULT)
_ATTEMPTS = 5
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup's folder and what its manifest says."""

    folder: Path
    # Of each database file, in hex.
    databases: dict[str, str]
    # Of each list of objects, in hex, and how many it has.
    sums: dict[str, str]
    objects: dict[str, int]

    @property
    def id(self) -> str:
        """What tells it from every other backup."""
        return hashlib.sha256(json.dumps([self.databases, self.sums], sort_keys=True).encode()).hexdigest()

    def database(self, service: str) -> Path:
        """The copy of a service's database."""
        return self.folder / f"{service}.db"

    def listed(self, service: str) -> Iterator[tuple[str, str]]:
        """SHA-256 and key of every object."""
        with (self.folder / f"{service}.sums").open(encoding="ascii") as lines:
            for line in lines:
                digest, _, key = line.rstrip("\n").partition("  ")
                yield digest, key


@dataclass(slots=True)
class _Copied:
    """The objects of one store that are in the backup: their digests by key."""

    store: ObjectStore
    folder: Path
    digests: dict[str, str] = field(default_factory=dict)

    def take(self, keys: list[str]) -> list[str]:
        """Copies those that are not there yet; gives those that have gone meanwhile."""
        gone = []
        for key in keys:
            if key in self.digests:
                continue
            try:
                self.digests[key] = write_private(self.folder / key, self.store.stream(key))
            except NotFound:
                (self.folder / key).unlink(missing_ok=True)
                gone.append(key)
        return gone

    def take_again(self, key: str) -> bool:
        """Copies one once more; whether it is there and another than before."""
        again = self.folder / (key + ".again")
        try:
            digest = write_private(again, self.store.stream(key))
        except NotFound:
            again.unlink(missing_ok=True)
            return False
        before, self.digests[key] = self.digests[key], digest
        again.replace(self.folder / key)
        return digest != before

    def sealing_key(self, key: str) -> str:
        """The data key that a copy names; empty for what is none of ours."""
        with (self.folder / key).open("rb") as file:
            try:
                return key_id_of(file.read(HEADER_BYTES))
            except OpenFailed:
                return ""


def back_up(managed: Managed, folder: Path, clock: Clock, say: Callable[[str], None]) -> Backup:
    """Writes a backup into a new folder. Raises BackupRefused, DatabaseAway."""
    _check_place(managed, folder)
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise BackupRefused(f"{folder} is there already; a backup takes a new folder") from None
    except OSError as error:
        raise BackupRefused(f"{folder}: {error.strerror}") from None
    databases = {service: folder / f"{service}.db" for service in ORDER}
    copied = {
        service: _Copied(open_store(url), folder / "objects" / service)
        for service, url in managed.objects.items()
    }
    say(f"{INGEST}: database")
    _copy_database(managed, INGEST, databases[INGEST])
    say(f"{VECTORSTORE}: objects and database")
    _copy_data(managed, databases[VECTORSTORE], copied)
    say(f"{GATEWAY}: database")
    _copy_database(managed, GATEWAY, databases[GATEWAY])
    say(f"{KEYVAULT}: database")
    _copy_keys(managed, databases[KEYVAULT], copied[INGEST])
    sums = {}
    for service, one in copied.items():
        lines = (f"{digest}  {key}\n".encode("ascii") for key, digest in sorted(one.digests.items()))
        sums[service] = write_private(folder / f"{service}.sums", lines)
    counts = {service: len(one.digests) for service, one in copied.items()}
    digests = {service: _digest_of(path) for service, path in databases.items()}
    made = Backup(folder, digests, sums, counts)
    manifest = {
        "format": FORMAT,
        "version": version(),
        "time": int(clock.now_s()),
        "databases": made.databases,
        "sums": made.sums,
        "objects": made.objects,
    }
    for place in (path for path in folder.rglob("*") if path.is_dir()):
        # A power cut must not take names away that the manifest counts.
        store.sync(place)
    part = folder / (MANIFEST + ".part")
    write_private(part, iter([json.dumps(manifest, indent=1).encode()]))
    part.replace(folder / MANIFEST)
    store.sync(folder)
    return made


def read_backup(folder: Path) -> Backup:
    """What a folder says of itself. Raises BackupRefused for none, and for one of a newer version."""
    try:
        said: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise BackupRefused(f"the backup is of a newer version ({said['version']})")
        found = Backup(folder, dict(said["databases"]), dict(said["sums"]), dict(said["objects"]))
        whole = set(found.databases) == set(ORDER) and set(found.sums) == set(found.objects) == {
            VECTORSTORE,
            INGEST,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BackupRefused):
            raise
        raise BackupRefused(f"{folder} is no whole backup: it has no manifest") from None
    if not whole:
        raise BackupRefused(f"{folder} is no whole backup: its manifest does not name all parts")
    return found


def prove(backup: Backup) -> None:
    """Raises BackupRefused where a part is not what was written; objects are proved as they are put back."""
    for service, digest in backup.databases.items():
        _compare(backup.database(service), digest)
        try:
            store.check(backup.database(service), service)
        except store.DatabaseAway as error:
            raise BackupRefused(f"{backup.database(service)}: {error}") from None
    for service, digest in backup.sums.items():
        _compare(backup.folder / f"{service}.sums", digest)


def write_private(path: Path, parts: Iterator[bytes]) -> str:
    """Writes a file that is its owner's alone, durably; its SHA-256 in hex."""
    digest = hashlib.sha256()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _compare(path: Path, digest: str) -> None:
    try:
        found = _digest_of(path)
    except OSError as error:
        raise BackupRefused(f"{path}: {error.strerror}") from None
    if found != digest:
        raise BackupRefused(f"{path} is not what was written; the backup is damaged")


def _check_place(managed: Managed, folder: Path) -> None:
    target = folder.resolve()
    keys = managed.keyvault.root_key_file
    for what, path in (("data", managed.folder), ("keys", keys.parent if keys else None)):
        if path is not None and (
            target.is_relative_to(path.resolve()) or path.resolve().is_relative_to(target)
        ):
            raise BackupRefused(f"a backup does not belong into the folder of the {what}; write it elsewhere")


def _copy_database(managed: Managed, service: str, target: Path) -> None:
    if service == KEYVAULT and managed.keyvault.database_file is not None:
        back_up_keyvault(managed.keyvault, target)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        store.copy_out(managed.of(service).database_url, service, target)
    store.check(target, service)
    store.sync(target)


def _copy_data(managed: Managed, target: Path, copied: dict[str, _Copied]) -> None:
    for one in copied.values():
        # What there is already; so that little is left for the moment that counts.
        one.take(one.store.list(""))
    for _ in range(_ATTEMPTS):
        before = {service: one.store.list("") for service, one in copied.items()}
        target.unlink(missing_ok=True)
        _copy_database(managed, VECTORSTORE, target)
        gone = [key for service, one in copied.items() for key in one.take(before[service])]
        gone += [key for one in copied.values() for key in one.take(one.store.list(""))]
        if not gone:
            return
    raise BackupRefused("objects go away faster than they are copied; try again when less is deleted")


def _copy_keys(managed: Managed, target: Path, originals: _Copied) -> None:
    """Copies keyvault's database, and again what was sealed anew since it was copied."""
    dead = set[str]()
    for _ in range(_ATTEMPTS):
        target.unlink(missing_ok=True)
        _copy_database(managed, KEYVAULT, target)
        known = store.data_keys_of(target)
        aged = {
            key for key in originals.digests if key not in dead and originals.sealing_key(key) not in known
        }
        anew = {key for key in aged if originals.take_again(key)}
        # What is gone, or is as it was, nobody opens any more: its keys were destroyed.
        dead |= aged - anew
        if all(originals.sealing_key(key) in known for key in anew):
            return
    raise BackupRefused("originals are sealed anew faster than they are copied; try again later")


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
