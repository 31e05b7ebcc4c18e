"""Keys that were made for nothing are destroyed, and none that is in use (D22, D16)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services.common import ids
from services.common.errors import KeyDisabled, Unavailable
from services.common.sealing import OpenFailed
from services.keyvault import retirement
from services.keyvault.kms.file import FileKms
from services.keyvault.policy import AccountUnknown
from services.keyvault.records import AccountKey
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import DELETE, MemoryKms, Rig

_FAILED = Unavailable("the key store failed; try again")


@pytest.fixture
def kms() -> MemoryKms:
    return MemoryKms()


@pytest.fixture
def rig(tmp_path: Path, kms: MemoryKms) -> Iterator[Rig]:
    made = Rig(tmp_path / "keyvault.db", kms)
    yield made
    made.close()


@pytest.fixture
def file_rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "keyvault.db", FileKms(bytes(range(32))))
    yield made
    made.close()


def _raise(*_arguments: object) -> None:
    raise _FAILED


async def test_a_key_whose_account_could_not_be_recorded_is_destroyed(
    rig: Rig, kms: MemoryKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D22: no KMS key without an account that has it."""
    asker = rig.asker(ids.new_id(), "gateway")
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "add_account", _raise)
        with pytest.raises(Unavailable):
            await rig.vault.provision(asker)
    assert not kms._keys
    await rig.vault.provision(asker)
    assert len(kms._keys) == 1


async def test_the_loser_of_a_race_has_an_account_though_its_key_cannot_go_yet(
    rig: Rig, kms: MemoryKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D22: what the KMS does not destroy now is remembered, and the call is answered."""
    asker = rig.asker(ids.new_id(), "gateway")
    with monkeypatch.context() as patch:
        patch.setattr(kms, "destroy_key", _fails)
        await asyncio.gather(*(rig.vault.provision(asker) for _ in range(5)))
    assert len(kms._keys) == 5
    await retirement.Retirements(rig.store, rig.registry)._destroy("")
    assert [bytes(row.handle) for row in rig.sql("select handle from account_keys")] == list(kms._keys)


async def _fails(_key: AccountKey) -> None:
    raise _FAILED


async def test_a_key_of_a_transaction_of_which_nobody_heard_stays(rig: Rig, kms: MemoryKms) -> None:
    """A commit may have succeeded though its answer was lost: what is in use is never destroyed."""
    account = await rig.account()
    key = (await rig.read(lambda tx: tx.account_keys(account)))[0]
    await retirement.Retirements(rig.store, rig.registry).discard(key)
    assert kms._keys == {key.handle}
    assert not rig.sql("select * from retired_keys")


async def test_a_caller_who_hangs_up_leaves_no_key_without_an_account(
    rig: Rig, kms: MemoryKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = rig.asker(ids.new_id(), "gateway")
    making = asyncio.Event()
    made, going = kms.new_key, asyncio.Event()

    async def slow(account: str, version: int) -> AccountKey:
        key = await made(account, version)
        making.set()
        await going.wait()
        return key

    monkeypatch.setattr(kms, "new_key", slow)
    call = asyncio.create_task(rig.vault.provision(asker))
    await making.wait()
    call.cancel()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    await rig.completion.drain()
    assert [bytes(row.handle) for row in rig.sql("select handle from account_keys")] == list(kms._keys)


async def test_keys_that_their_kms_keeps_do_not_stand_before_those_of_another(
    rig: Rig, kms: MemoryKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retirement, "_BATCH", 2)
    keys = [await kms.new_key(ids.new_id(), 1) for _ in range(7)]
    stuck = {key.handle for key in keys[:5]}
    await rig.store.write(lambda tx: tx.retire(keys))
    destroy = kms.destroy_key

    async def some(key: AccountKey) -> None:
        if key.handle in stuck:
            raise _FAILED
        await destroy(key)

    monkeypatch.setattr(kms, "destroy_key", some)
    await retirement.Retirements(rig.store, rig.registry)._destroy("")
    assert kms._keys == stuck
    assert len(rig.sql("select * from retired_keys")) == 5


@pytest.mark.parametrize("off", ["disable", "destroy"])
@pytest.mark.parametrize("work", ["release", "rotation", "move"])
async def test_what_was_on_its_way_when_an_account_was_turned_off_leaves_no_key_of_it_in_memory(
    file_rig: Rig, monkeypatch: pytest.MonkeyPatch, work: str, off: str
) -> None:
    """D16: the KMS is asked before the account is off and answers after it."""
    rig, resource = file_rig, ids.new_id()
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, resource, "collection")
    rig.kms.forget(account)
    unwrap = rig.kms.unwrap
    calls: dict[str, Callable[[], Any]] = {
        "release": lambda: rig.releases.release(asker, resource, "collection"),
        "rotation": lambda: rig.moves.rotate(asker),
        "move": lambda: rig.moves.bind(asker, "", None),
    }

    async def late(*arguments: Any) -> bytes:
        await getattr(rig.vault, off)(asker)
        return await unwrap(*arguments)

    monkeypatch.setattr(rig.kms, "unwrap", late)
    with pytest.raises((KeyDisabled, AccountUnknown)):
        await calls[work]()
    assert isinstance(rig.kms, FileKms)
    assert not rig.kms._keys


async def test_a_rotation_that_stops_half_way_leaves_no_key_of_an_account_that_is_off_in_memory(
    file_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D16: the account is turned off while its data keys are unwrapped, and one of them does not open."""
    rig = file_rig
    asker = rig.asker(await rig.account())
    await rig.releases.release(asker, ids.new_id(), "collection")
    rig.sql("update data_keys set wrapped = x'00'")
    unwrap = rig.kms.unwrap

    async def late(*arguments: Any) -> bytes:
        await rig.vault.disable(asker)
        return await unwrap(*arguments)

    monkeypatch.setattr(rig.kms, "unwrap", late)
    with pytest.raises(OpenFailed):
        await rig.moves.rotate(asker)
    assert isinstance(rig.kms, FileKms)
    assert not rig.kms._keys


async def test_a_disk_without_room_for_a_checkpoint_undoes_no_answer(
    file_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: what was decided is durable before old rows leave the files, and is answered so."""
    rig = file_rig
    asker, resource = rig.asker(await rig.account()), ids.new_id()
    await rig.releases.release(asker, resource, "collection")
    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "_engine", _NoCheckpoints(rig.store._engine))
        assert (await rig.moves.rotate(asker)).version == 2
        # Whoever wants proof that a resource's keys are gone from the disk too asks again.
        with pytest.raises(Unavailable):
            await rig.releases.destroy(rig.asker(asker.account, method=DELETE), resource)
    await rig.releases.destroy(rig.asker(asker.account, method=DELETE), resource)
    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "_engine", _NoCheckpoints(rig.store._engine))
        await rig.vault.destroy(asker)


class _NoCheckpoints:
    """An engine whose transactions work, on a disk where a checkpoint does not."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def raw_connection(self) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
