"""Rotations that are wanted at the same time: carried out together, each with its own outcome."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sealcomb_client.audit import verify_chain
from services.common import ids
from services.common.errors import SealcombError
from services.common.sealing import DataKey
from services.keyvault import rotation
from services.keyvault.kms.file import FileKms
from services.keyvault.policy import AccountUnknown
from services.keyvault.records import AccountRecord
from tests.keyvault.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "keyvault.db", FileKms(bytes(range(32))))


async def _accounts(rig: Rig, count: int, data_keys: int) -> dict[str, dict[str, DataKey]]:
    found: dict[str, dict[str, DataKey]] = {}
    for _ in range(count):
        asker = rig.asker(await rig.account())
        resources = [ids.new_id() for _ in range(data_keys)]
        found[asker.account] = {r: await rig.releases.release(asker, r, "collection") for r in resources}
    return found


async def _rotate(rig: Rig, accounts: list[str]) -> list[AccountRecord | BaseException]:
    calls = (rig.moves.rotate(rig.asker(account)) for account in accounts)
    return await asyncio.gather(*calls, return_exceptions=True)


async def _check_opens(rig: Rig, account: str, before: dict[str, DataKey]) -> None:
    for resource, key in before.items():
        assert await rig.releases.release(rig.asker(account), resource, "collection") == key
    verify_chain(await rig.lines(account))


async def test_accounts_that_rotate_at_once_share_transactions_and_keep_every_key(rig: Rig) -> None:
    """D20: each has its new version, its own record of that, and every data key it had."""
    before = await _accounts(rig, 20, 2)
    writes = rig.store.writes
    rotated = await _rotate(rig, list(before))
    assert rig.store.writes - writes <= 2
    assert [r.version for r in rotated if isinstance(r, AccountRecord)] == [2] * 20
    assert rig.sql("select distinct version from data_keys") == [(2,)]
    assert rig.sql("select count(*), max(version), min(version) from account_keys") == [(20, 2, 2)]
    for account, keys in before.items():
        await _check_opens(rig, account, keys)
        assert (await rig.acts(account))[-3] == ("key.rotate", "vectorstore", "ok")
    rig.close()


async def test_what_stops_one_account_stops_no_other_of_its_group(rig: Rig) -> None:
    before = await _accounts(rig, 4, 1)
    good, damaged, disabled, other = before
    rig.sql("update data_keys set wrapped = x'00' where account = :account", account=damaged)
    await rig.vault.disable(rig.asker(disabled))
    unknown = ids.new_id()
    results = await _rotate(rig, [good, damaged, disabled, unknown, other])
    outcomes = [r.version if isinstance(r, AccountRecord) else type(r).__name__ for r in results]
    assert outcomes == [2, "OpenFailed", "KeyDisabled", "AccountUnknown", 2]
    assert isinstance(results[3], AccountUnknown)
    for account in (good, other):
        await _check_opens(rig, account, before[account])
    assert rig.sql("select version from accounts where id in (:a, :b)", a=damaged, b=disabled) == [(1,)] * 2
    assert (await rig.acts(disabled))[-1] == ("key.rotate", "vectorstore", "KEY_DISABLED")
    rig.close()


async def test_an_account_that_is_turned_off_while_its_group_is_prepared_stays_as_it_was(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is looked at again in the transaction: off is off, and the others go on."""
    before = await _accounts(rig, 2, 1)
    off, on = before
    made = rotation.rewrapped

    async def turned_off(*arguments: object) -> object:
        await rig.vault.disable(rig.asker(off))
        return await made(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rotation, "rewrapped", turned_off)
    results = await _rotate(rig, [off, on])
    assert [type(result).__name__ for result in results] == ["KeyDisabled", "AccountRecord"]
    assert rig.sql("select version from data_keys where account = :account", account=off) == [(1,)]
    await _check_opens(rig, on, before[on])
    rig.close()


async def test_a_group_has_so_many_data_keys_and_the_rest_comes_after(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them becomes a move for want of room."""
    monkeypatch.setattr(rotation, "_DATA_KEYS_MAX", 10)
    begun: list[object] = []
    monkeypatch.setattr(type(rig.moves), "_begun", lambda *arguments: begun.append(arguments))
    before = await _accounts(rig, 9, 4)
    writes = rig.store.writes
    rotated = await _rotate(rig, list(before))
    assert [r.version for r in rotated if isinstance(r, AccountRecord)] == [2] * 9
    assert rig.store.writes - writes >= 5
    assert not begun
    rig.close()


async def test_those_who_wait_behind_a_full_queue_are_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "_WAITING_MAX", 1)
    accounts = list(await _accounts(rig, 3, 0))
    results = await _rotate(rig, accounts)
    assert [type(result).__name__ for result in results] == ["AccountRecord", "Unavailable", "Unavailable"]
    assert isinstance(results[1], SealcombError)
    assert (await rig.moves.rotate(rig.asker(accounts[1]))).version == 2
    rig.close()


async def test_a_keyvault_that_stops_leaves_nobody_waiting(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await _accounts(rig, 2, 1)

    async def for_ever(*_arguments: object) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "rewrapped", for_ever)
        calls = [asyncio.create_task(rig.moves.rotate(rig.asker(account))) for account in before]
        await asyncio.sleep(0.05)
        await rig.moves.close()
    assert all(call.cancelled() for call in (await asyncio.wait(calls, timeout=30))[0])
    for account, keys in before.items():
        assert (await rig.moves.rotate(rig.asker(account))).version == 2
        await _check_opens(rig, account, keys)
    rig.close()
