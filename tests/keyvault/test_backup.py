"""Backup while keyvault runs, and restore: checked, and no way back for what was deleted (D26, G15)."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common import ids
from services.keyvault.backup import BackupRefused, back_up, restore
from services.keyvault.config import KeyvaultSettings
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.ledger import Ledger, LedgerDamaged
from services.keyvault.policy import AccountUnknown
from services.keyvault.reconciliation import Reconciliation
from services.keyvault.statements import StatementSigner
from services.keyvault.vault import WrongInstallation
from services.standalone.pki import ensure_installation
from tests.keyvault.rig import ManualClock, Rig

_RESOURCE = ids.from_bytes(bytes(16))


class _Place:
    """The folders of an installation, and its keyvault."""

    def __init__(self, folder: Path) -> None:
        keys = ensure_installation(folder / "keys")
        (folder / "data").mkdir()
        (folder / "backups").mkdir()
        self.database = folder / "data" / "keyvault.db"
        self.copy = folder / "backups" / "keyvault.copy"
        self.settings = KeyvaultSettings(
            listen="127.0.0.1:0",
            tls_dir=keys.tls_dir("keyvault"),
            context_trust_dir=keys.context_trust_dir,
            database_url=f"sqlite:///{self.database}",
            context_key_file=keys.context_key_file("keyvault"),
            root_key_file=keys.root_key_file,
        )
        self.signer = StatementSigner.from_file(keys.context_key_file("keyvault"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """A keyvault as main starts it."""
        rig = Rig(self.database, FileKms(bytes(range(32))))
        assert self.settings.ledger is not None
        ledger = Ledger(self.settings.ledger, self.signer)
        try:
            await rig.vault.bind_installation()
            await Reconciliation(rig.store, ledger, rig.clock).at_start()
            rig.store.keep_ledger(ledger)
            yield rig
        finally:
            rig.close()
            ledger.close()

    async def restore(self, root_key: bytes = bytes(range(32))) -> tuple[int, int]:
        """Puts the copy back; how many accounts it has, and how many destructions were made again."""
        registry = KmsRegistry(FileKms(root_key))
        restored = await restore(self.settings, registry, self.copy, ManualClock())
        return restored.accounts, restored.destroyed_again


@pytest.fixture
def place(tmp_path: Path) -> _Place:
    """A fresh installation."""
    return _Place(tmp_path)


async def test_a_backup_of_a_busy_keyvault_is_whole_and_brings_back_what_it_had(place: _Place) -> None:
    async with place.running() as rig:
        account = await rig.account()
        key = await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
        writing = asyncio.create_task(_write_on(rig, account))
        await asyncio.to_thread(back_up, place.settings, place.copy)
        writing.cancel()
        later = await rig.account()
    assert place.copy.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in place.copy.parent.iterdir()] == [place.copy.name]
    assert await place.restore() == (1, 0)
    async with place.running() as rig:
        assert await rig.releases.release(rig.asker(account), _RESOURCE, "collection", key.id) == key
        assert await rig.chain.first_bad(account) is None
        with pytest.raises(AccountUnknown):
            await rig.vault.describe(rig.asker(later))
    # What was there before is kept, whole.
    replaced = place.database.with_name("keyvault.db.replaced")
    assert sqlite3.connect(replaced).execute("select count(*) from accounts").fetchone() == (2,)


async def _write_on(rig: Rig, account: str) -> None:
    while True:
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection")


async def test_a_backup_from_before_a_deletion_does_not_undo_it(place: _Place) -> None:
    """D26: put back by the command; test_ledger.py has the twin and the copy that was put back by hand."""
    async with place.running() as rig:
        gone, stays = await rig.account(), await rig.account()
        await rig.releases.release(rig.asker(gone), _RESOURCE, "collection")
        back_up(place.settings, place.copy)
        await rig.vault.destroy(rig.asker(gone))
    assert await place.restore() == (2, 1)
    async with place.running() as rig:
        with pytest.raises(AccountUnknown):
            await rig.releases.release(rig.asker(gone), _RESOURCE, "collection")
        await rig.vault.describe(rig.asker(stays))


async def test_a_lost_database_is_restored(place: _Place) -> None:
    async with place.running() as rig:
        account = await rig.account()
        back_up(place.settings, place.copy)
    for path in place.database.parent.iterdir():
        path.unlink()
    assert await place.restore() == (1, 0)
    async with place.running() as rig:
        await rig.vault.describe(rig.asker(account))


async def test_what_is_no_whole_copy_is_refused_and_the_database_stays(place: _Place) -> None:
    async with place.running() as rig:
        account = await rig.account()
        for _ in range(50):
            await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
        back_up(place.settings, place.copy)
    good = place.copy.read_bytes()
    before = place.database.read_bytes()

    async def refused(why: str, root_key: bytes = bytes(range(32))) -> None:
        with pytest.raises((BackupRefused, WrongInstallation), match=why):
            await place.restore(root_key)
        assert place.database.read_bytes() == before
        assert not list(place.database.parent.glob("*.restoring*"))

    for content in (b"", b"no database", good[: len(good) // 2], good[:-4096]):
        place.copy.write_bytes(content)
        await refused("no whole copy")
    place.copy.write_bytes(good)
    with sqlite3.connect(place.copy) as connection:
        connection.execute(
            "update audit_events set outcome = 'forged' where account = ? and sequence = 7", (account,)
        )
    await refused(f"account {account} does not hold at record 7")
    place.copy.write_bytes(good)
    with sqlite3.connect(place.copy) as connection:
        connection.execute("delete from audit_events where account = ? and sequence > 40", (account,))
    await refused("does not hold at record 41")
    place.copy.write_bytes(good)
    await refused("the root key is not the one of this database", bytes(range(1, 33)))
    place.copy.unlink()
    await refused("cannot be put back")


async def test_nothing_is_restored_while_keyvault_runs(place: _Place) -> None:
    async with place.running() as rig:
        await rig.account()
        back_up(place.settings, place.copy)
        with pytest.raises(LedgerDamaged, match="another keyvault"):
            await place.restore()


async def test_a_backup_replaces_nothing_and_lies_beside_no_key(place: _Place) -> None:
    with pytest.raises(BackupRefused, match="no database"):
        back_up(place.settings, place.copy)
    async with place.running() as rig:
        await rig.account()
        assert place.settings.root_key_file is not None
        with pytest.raises(BackupRefused, match="folder of the root key"):
            back_up(place.settings, place.settings.root_key_file.with_name("copy"))
        place.copy.write_bytes(b"an earlier one")
        with pytest.raises(BackupRefused, match="File exists"):
            back_up(place.settings, place.copy)
        assert place.copy.read_bytes() == b"an earlier one"
        with pytest.raises(BackupRefused, match="No such file"):
            back_up(place.settings, place.copy.parent / "missing" / "copy")


async def test_a_copy_holds_no_key_that_opens_anything(place: _Place) -> None:
    """D26: what a thief of backups gets; the twin is a copy that lies beside the root key."""
    async with place.running() as rig:
        account = await rig.account()
        key = await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
        back_up(place.settings, place.copy)
    content = place.copy.read_bytes()
    assert bytes(range(32)) not in content
    assert key.secret not in content
    shutil.copy(place.copy, place.copy.with_name("thief.db"))
    thief = Rig(place.copy.with_name("thief.db"), FileKms(bytes(range(32))))
    assert await thief.releases.release(thief.asker(account), _RESOURCE, "collection", key.id) == key
    thief.close()


async def test_a_kill_at_the_last_moment_leaves_a_database_that_starts(
    place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old database or the new one; where there is none for a moment, keyvault makes no new one."""
    async with place.running() as rig:
        account = await rig.account()
        back_up(place.settings, place.copy)
    replace = Path.replace
    for step in range(2):
        moves: list[Path] = []

        def stop(path: Path, target: Path, moves: list[Path] = moves, step: int = step) -> Path:
            moves.append(path)
            if len(moves) > step:
                raise OSError(5, "killed here")
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stop)
            with pytest.raises(BackupRefused):
                await place.restore()
        if place.database.exists():
            async with place.running() as rig:
                await rig.vault.describe(rig.asker(account))
        else:
            with pytest.raises(ValueError, match="older than the ledger's mark"):
                async with place.running():
                    pass
    assert await place.restore() == (1, 0)
    async with place.running() as rig:
        await rig.vault.describe(rig.asker(account))
    # The first one is still there, though an empty one was made and replaced after it.
    first = place.database.with_name("keyvault.db.replaced")
    assert sqlite3.connect(first).execute("select count(*) from accounts").fetchone() == (1,)
