"""A backup of originals that are sealed anew while it is written, and one that is put into a wrong place."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from services.common import ids
from services.common.clock import SystemClock
from services.common.database import migrate, open_engine
from services.common.methods import SERVICES
from services.common.objects import open_store
from services.common.sealing import DataKey, Identity, Sealer
from services.keyvault.backup import BackupRefused
from services.keyvault.backup import back_up as back_up_keyvault
from services.standalone.admin import backup, restore
from services.standalone.admin.managed import Managed, of_data_folder
from services.standalone.pki import ensure_installation

ACCOUNT, COLLECTION = ids.new_id(), ids.new_id()


def sealed(key_id: str) -> bytes:
    sealer = Sealer(DataKey(key_id, secrets.token_bytes(32)), Identity(ACCOUNT, COLLECTION, "original", "x"))
    return sealer.update(b"words") + sealer.finalize()


@pytest.fixture
def managed(tmp_path: Path) -> Managed:
    """An installation that does not run, and whose keyvault has one data key."""
    ensure_installation(tmp_path / "data.keys")
    made = of_data_folder(tmp_path / "data")
    for service in SERVICES:
        (tmp_path / "data" / service).mkdir(parents=True)
        engine = open_engine(made.of(service).database_url)
        migrate(engine, f"services.{service}")
        engine.dispose()
    return made


def add_data_key(managed: Managed, key_id: str) -> None:
    assert managed.keyvault.database_file is not None
    with sqlite3.connect(managed.keyvault.database_file) as connection:
        fields = (key_id, ACCOUNT, COLLECTION, "original", 1, b"wrapped", "CURRENT", 0)
        connection.execute(
            "INSERT INTO data_keys (id, account, resource, purpose, version, wrapped, state, create_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            fields,
        )
    connection.close()


@pytest.mark.parametrize("gone", [False, True])
def test_an_original_whose_key_goes_while_the_backup_is_written_is_copied_under_its_new_one(
    managed: Managed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """Or left as it was, if it was deleted with its key: nobody opens it any more."""
    old, new, name = ids.new_id(), ids.new_id(), f"{ACCOUNT}/{COLLECTION}/{ids.new_id()}"
    before, after = sealed(old), sealed(new)
    objects = open_store(managed.ingest.objects_url)
    objects.put(name, [before])
    add_data_key(managed, new)

    def meanwhile(*arguments: Any) -> None:
        if gone:
            objects.delete(name)
        else:
            objects.put(name, [after])
        back_up_keyvault(*arguments)

    monkeypatch.setattr("services.standalone.admin.backup.back_up_keyvault", meanwhile)
    made = backup.back_up(managed, tmp_path / "backup", SystemClock(), lambda _text: None)
    assert (made.folder / "objects" / "ingest" / name).read_bytes() == (before if gone else after)
    assert [key for _digest, key in made.listed("ingest")] == [name]
    backup.prove(backup.read_backup(made.folder))
    (digest,) = (digest for digest, _key in made.listed("ingest"))
    assert digest == backup._digest_of(made.folder / "objects" / "ingest" / name)


class OthersBucket:
    """A bucket that belongs to another installation."""

    def claim(self, owner: str) -> None:
        """It is not yours."""
        assert owner
        raise ValueError("the bucket is another database's")


def test_a_backup_is_not_put_into_the_bucket_of_another_installation(
    managed: Managed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but its claim is called, and no database is put back."""
    backup.back_up(managed, tmp_path / "backup", SystemClock(), lambda _text: None)
    (tmp_path / "data").rename(tmp_path / "lost")
    monkeypatch.setattr("services.standalone.admin.restore.open_store", lambda _url: OthersBucket())
    made = backup.read_backup(tmp_path / "backup")
    with pytest.raises(BackupRefused, match="another database's"):
        asyncio.run(restore.restore(managed, made, SystemClock(), lambda _text: None))
    assert not list((tmp_path / "data").rglob("*.db"))
