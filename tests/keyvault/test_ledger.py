"""The ledger: what was destroyed stays destroyed, whatever copy of the database is put back (D26, F3, F9)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import ids
from services.common.errors import Unavailable
from services.keyvault.kms.file import FileKms
from services.keyvault.ledger import Destruction, Ledger, LedgerDamaged, LedgerFailed, Mark
from services.keyvault.policy import AccountUnknown, KeyUnknown
from services.keyvault.reconciliation import DatabaseRolledBack, Reconciliation
from services.keyvault.statements import StatementSigner
from tests.keyvault.rig import DELETE, Rig

_SIGNER = StatementSigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
_RESOURCE = ids.from_bytes(bytes(16))
_ACCOUNT = ids.from_bytes(bytes(15) + b"a")


@asynccontextmanager
async def _vault(folder: Path, *, accept_older: bool = False, ledger: bool = True) -> AsyncIterator[Rig]:
    """A keyvault as its main starts it, on the database and the ledger of a folder."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "keys").mkdir(exist_ok=True)
    rig = Rig(folder / "data" / "keyvault.db", FileKms(bytes(range(32))))
    held = Ledger(folder / "keys" / "destroyed.ledger", _SIGNER) if ledger else None
    try:
        if held is not None:
            rig.reconciliation = Reconciliation(rig.store, held, rig.clock)
            await rig.reconciliation.at_start(accept_older=accept_older)
            rig.store.keep_ledger(held)
        yield rig
    finally:
        rig.close()
        if held is not None:
            held.close()


def _copy(folder: Path, name: str) -> None:
    shutil.copytree(folder / "data", folder / name)


def _put_back(folder: Path, name: str) -> None:
    shutil.rmtree(folder / "data")
    shutil.copytree(folder / name, folder / "data")


async def _two_accounts(folder: Path, *, ledger: bool = True) -> tuple[str, str, str]:
    """Two accounts with keys and a copy of their database, after which one account and a collection go."""
    async with _vault(folder, ledger=ledger) as rig:
        gone, stays = await rig.account(), await rig.account()
        for account in (gone, stays):
            await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
        other = ids.new_id()
        await rig.releases.release(rig.asker(stays), other, "collection")
    _copy(folder, "old")
    async with _vault(folder, ledger=ledger) as rig:
        await rig.vault.destroy(rig.asker(gone))
        await rig.releases.destroy(rig.asker(stays, method=DELETE), _RESOURCE)
    return gone, stays, other


async def test_an_old_database_is_refused_and_accepted_brings_nothing_back(tmp_path: Path) -> None:
    """D26, F9: neither the account nor the collection; all else is there, and the chains hold."""
    gone, stays, other = await _two_accounts(tmp_path)
    _put_back(tmp_path, "old")
    with pytest.raises(DatabaseRolledBack, match="--accept-older-database"):
        async with _vault(tmp_path):
            pass
    async with _vault(tmp_path, accept_older=True) as rig:
        with pytest.raises(AccountUnknown):
            await rig.releases.release(rig.asker(gone), _RESOURCE, "collection")
        with pytest.raises(AccountUnknown):
            await rig.vault.provision(rig.asker(gone, "gateway"))
        with pytest.raises(KeyUnknown):
            await rig.releases.release(rig.asker(stays), _RESOURCE, "collection")
        await rig.releases.release(rig.asker(stays), other, "collection")
        assert ("key.destroy", "keyvault", "ok") in await rig.acts(gone)
        assert [await rig.chain.first_bad(account) for account in (gone, stays)] == [None, None]
        assert json.loads(await rig.receipts.of(gone))["data_keys"] == 1
    async with _vault(tmp_path) as rig:
        await rig.releases.release(rig.asker(stays), other, "collection")


async def test_without_the_ledger_an_old_database_brings_all_back(tmp_path: Path) -> None:
    """D26's twin."""
    gone, stays, _ = await _two_accounts(tmp_path, ledger=False)
    _put_back(tmp_path, "old")
    async with _vault(tmp_path, ledger=False) as rig:
        for account in (gone, stays):
            await rig.releases.release(rig.asker(account), _RESOURCE, "collection")


async def test_a_database_older_by_less_than_a_mark_brings_nothing_back_either(tmp_path: Path) -> None:
    """The mark says nothing of it; the ledger does."""
    async with _vault(tmp_path) as rig:
        gone = await rig.account()
        await rig.releases.release(rig.asker(gone), _RESOURCE, "collection")
        rig.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        _copy(tmp_path, "old")
        await rig.vault.destroy(rig.asker(gone))
    _put_back(tmp_path, "old")
    async with _vault(tmp_path) as rig:
        with pytest.raises(AccountUnknown):
            await rig.releases.release(rig.asker(gone), _RESOURCE, "collection")


async def test_each_older_copy_is_noticed_and_the_newest_is_not(tmp_path: Path) -> None:
    """F3's class: three copies in a row."""
    for number in range(3):
        async with _vault(tmp_path) as rig:
            await rig.account()
            await rig.reconciliation.advance()
        _copy(tmp_path, f"copy{number}")
    for number in range(2):
        _put_back(tmp_path, f"copy{number}")
        with pytest.raises(DatabaseRolledBack):
            async with _vault(tmp_path):
                pass
    _put_back(tmp_path, "copy2")
    async with _vault(tmp_path):
        pass
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DatabaseRolledBack):
        async with _vault(tmp_path):
            pass


async def test_two_histories_of_one_database_are_told_apart(tmp_path: Path) -> None:
    """A copy that went its own way for as long as the database did is not the database."""
    async with _vault(tmp_path) as rig:
        await rig.account()
    _copy(tmp_path, "fork")
    shutil.copytree(tmp_path / "keys", tmp_path / "keys-then")
    async with _vault(tmp_path):
        pass
    shutil.move(tmp_path / "data", tmp_path / "data-now")
    shutil.move(tmp_path / "keys", tmp_path / "keys-now")
    shutil.move(tmp_path / "fork", tmp_path / "data")
    shutil.move(tmp_path / "keys-then", tmp_path / "keys")
    async with _vault(tmp_path):
        pass
    shutil.rmtree(tmp_path / "keys")
    shutil.move(tmp_path / "keys-now", tmp_path / "keys")
    with pytest.raises(DatabaseRolledBack):
        async with _vault(tmp_path):
            pass


async def test_a_lost_ledger_is_filled_again_from_the_database(tmp_path: Path) -> None:
    gone, stays, _ = await _two_accounts(tmp_path)
    shutil.rmtree(tmp_path / "keys")
    async with _vault(tmp_path) as rig:
        await rig.vault.describe(rig.asker(stays))
    ledger = Ledger(tmp_path / "keys" / "destroyed.ledger", _SIGNER)
    assert {(entry.account, entry.resource) for entry in ledger.entries()} == {(gone, ""), (stays, _RESOURCE)}
    ledger.close()


async def test_a_destruction_that_the_ledger_cannot_take_is_not_answered_and_nothing_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it can: then all goes on, and the ledger has the destruction."""
    async with _vault(tmp_path) as rig:
        gone, stays = await rig.account(), await rig.account()

        def fail(_self: Ledger, _entries: object) -> None:
            raise LedgerFailed

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "append", fail)
            with pytest.raises(Unavailable) as caught:
                await rig.vault.destroy(rig.asker(gone))
            assert caught.value.reason == "LEDGER_FAILED"
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await rig.vault.destroy(rig.asker(gone))
                with pytest.raises(Unavailable):
                    await rig.releases.release(rig.asker(stays), _RESOURCE, "collection")
        await rig.vault.destroy(rig.asker(gone))
        await rig.releases.release(rig.asker(stays), _RESOURCE, "collection")
    ledger = Ledger(tmp_path / "keys" / "destroyed.ledger", _SIGNER)
    assert [entry.account for entry in ledger.entries()] == [gone]
    ledger.close()


async def test_a_crash_between_database_and_ledger_is_made_good_at_the_next_start(tmp_path: Path) -> None:
    async with _vault(tmp_path) as rig:
        gone = await rig.account()
    async with _vault(tmp_path, ledger=False) as rig:
        await rig.vault.destroy(rig.asker(gone))
    async with _vault(tmp_path):
        pass
    ledger = Ledger(tmp_path / "keys" / "destroyed.ledger", _SIGNER)
    assert [entry.account for entry in ledger.entries()] == [gone]
    ledger.close()


def _written(path: Path, count: int = 4) -> list[Destruction]:
    ledger = Ledger(path, _SIGNER)
    entries = [Destruction(_ACCOUNT, _RESOURCE if number % 2 else "", number) for number in range(count)]
    for entry in entries[:-2]:
        ledger.append([entry])
    ledger.append(entries[-2:])
    ledger.set_mark(Mark(7, b"nonce"))
    ledger.close()
    return entries


def _read(path: Path) -> list[Destruction]:
    ledger = Ledger(path, _SIGNER)
    try:
        return list(ledger.entries())
    finally:
        ledger.close()


def test_a_ledger_holds_what_was_written_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    entries = _written(path)
    assert _read(path) == entries
    ledger = Ledger(path, _SIGNER)
    assert ledger.mark() == Mark(7, b"nonce")
    with pytest.raises(LedgerDamaged, match="another keyvault"):
        Ledger(path, _SIGNER)
    ledger.close()
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_no_changed_byte_moved_or_missing_line_passes(tmp_path: Path) -> None:
    """Every byte of the file, and of the mark; a cut end is found by the mark."""
    short, path = tmp_path / "short" / "ledger", tmp_path / "ledger"
    short.parent.mkdir()
    _written(short, 2)
    for file in (short, short.with_name("ledger.mark")):
        content = file.read_bytes()
        for at in range(len(content)):
            changed = bytearray(content)
            changed[at] ^= 1
            file.write_bytes(changed)
            with pytest.raises(LedgerDamaged):
                _read(short)
        file.write_bytes(content)
    entries = _written(path)
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for order in ([1, 0, 2, 3], [0, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2], [1, 2, 3], []):
        path.write_bytes(b"".join(lines[number] for number in order))
        with pytest.raises(LedgerDamaged):
            _read(path)
    stranger = StatementSigner(Ed25519PrivateKey.generate())
    path.write_bytes(good)
    with pytest.raises(LedgerDamaged):
        Ledger(path, stranger)
    assert _read(path) == entries


def test_a_line_that_a_crash_cut_off_is_dropped_and_written_over(tmp_path: Path) -> None:
    """At every byte of the last line; the mark does not know of that line yet."""
    path = tmp_path / "ledger"
    ledger = Ledger(path, _SIGNER)
    ledger.append([Destruction(_ACCOUNT, "", 1)])
    ledger.set_mark(Mark(1, b""))
    first = path.read_bytes()
    ledger.append([Destruction(_ACCOUNT, _RESOURCE, 2)])
    whole = path.read_bytes()
    ledger.close()
    for cut in range(len(first) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert _read(path) == [Destruction(_ACCOUNT, "", 1)]
        assert path.read_bytes() == first


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, _SIGNER)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:100]))
        with pytest.raises(LedgerFailed):
            ledger.append([Destruction(_ACCOUNT, "", 1)])
    ledger.append([Destruction(_ACCOUNT, "", 2)])
    ledger.close()
    assert _read(path) == [Destruction(_ACCOUNT, "", 2)]


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_ledger_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    path.write_bytes(content)
    if b"\n" in content:
        with pytest.raises(LedgerDamaged):
            _read(path)
    else:
        assert _read(path) == []


async def test_marks_move_on_while_there_are_writes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.keyvault.reconciliation._MARK_S", 0.01)
    async with _vault(tmp_path) as rig:
        mark = tmp_path / "keys" / "destroyed.ledger.mark"
        running = asyncio.create_task(rig.reconciliation.run())
        await asyncio.sleep(0.1)
        before = mark.read_bytes()
        await asyncio.sleep(0.1)
        assert mark.read_bytes() == before
        await rig.account()
        for _ in range(3000):
            await asyncio.sleep(0.01)
            if mark.read_bytes() != before:
                break
        else:
            pytest.fail("the mark stands still")
        running.cancel()
