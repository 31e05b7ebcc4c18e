"""The life of an account's key: one, rotated whole, off at once, gone for good (D14, D20, D22, F8, F9)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sealcomb_client.audit import verify_chain
from services.common import ids
from services.common.errors import Aborted, InvalidArgument, KeyDisabled, NotFound, Unavailable
from services.keyvault import vault
from services.keyvault.events import KeyChange
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.moves import Moves
from services.keyvault.policy import AccountUnknown
from services.keyvault.records import AccountRecord, KeyState
from services.keyvault.transaction import Transaction
from services.keyvault.vault import Vault, WrongInstallation
from tests.keyvault.rig import MemoryKms, Rig

_RESOURCE = ids.from_bytes(bytes(16))


async def test_an_account_has_one_key_however_often_it_is_made(rig: Rig) -> None:
    """D22: 200 at once, then once more."""
    asker = rig.asker(ids.new_id(), "gateway")
    await asyncio.gather(*(rig.vault.provision(asker) for _ in range(200)))
    await rig.vault.provision(asker)
    assert rig.sql("select account, version from account_keys") == [(asker.account, 1)]
    assert await rig.acts(asker.account) == [("key.provision", "gateway", "ok")]


async def test_no_two_accounts_share_a_key(rig: Rig) -> None:
    """D22."""
    for _ in range(50):
        await rig.account()
    handles = [row[0] for row in rig.sql("select handle from account_keys")]
    assert len(set(handles)) == len(handles) == 50


@pytest.mark.parametrize("account", ["", "a", "A" * 26, "x" * 10_000, "../../etc"])
async def test_what_is_no_id_becomes_no_account(rig: Rig, account: str) -> None:
    with pytest.raises(InvalidArgument):
        await rig.vault.provision(rig.asker(account))


async def test_a_key_is_described(rig: Rig) -> None:
    account = await rig.account()
    for _ in range(3):
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    found = await rig.vault.describe(rig.asker(account))
    assert (found.state, found.version, found.data_keys, found.suspended) == (KeyState.ENABLED, 1, 3, False)
    assert found.create_us == int(rig.clock.now_s() * 1e6)
    assert found.rotate_us == 0
    with pytest.raises(AccountUnknown):
        await rig.vault.describe(rig.asker(ids.new_id()))


async def test_rotation_keeps_every_data_key_and_destroys_the_old_version(rig: Rig) -> None:
    """D20: the count of keys under old versions is 0, and every key still opens."""
    account = await rig.account()
    asker = rig.asker(account)
    resources = [ids.new_id() for _ in range(150)]
    before = [await rig.releases.release(asker, resource, "collection") for resource in resources]
    old_handle = rig.sql("select handle from account_keys")[0][0]
    old_wrapped = {row[0] for row in rig.sql("select wrapped from data_keys")}
    rig.clock.time_s += 60
    after = await rig.moves.rotate(asker)
    assert (after.version, after.data_keys, after.rotate_us) == (2, 150, int(rig.clock.now_s() * 1e6))
    assert rig.sql("select version from account_keys") == [(2,)]
    assert rig.sql("select distinct version from data_keys") == [(2,)]
    assert not old_wrapped & {row[0] for row in rig.sql("select wrapped from data_keys")}
    assert old_handle not in rig.files()
    assert [await rig.releases.release(asker, resource, "collection") for resource in resources] == before
    assert (await rig.moves.rotate(asker)).version == 3
    assert [act[0] for act in await rig.acts(account)].count("key.rotate") == 2


async def test_keys_that_left_with_the_old_version_do_not_open_under_the_new_one(rig: Rig) -> None:
    """D20: an old row put back after a rotation opens nothing."""
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")
    old = rig.sql("select wrapped from data_keys")[0][0]
    await rig.moves.rotate(asker)
    rig.sql("update data_keys set wrapped=:old", old=old)
    with pytest.raises(Exception, match="does not open"):
        await rig.releases.release(asker, _RESOURCE, "collection")


async def test_releases_go_on_during_rotations(rig: Rig) -> None:
    """D20: nobody sees a key that does not open, and keys made meanwhile are re-wrapped too."""
    account = await rig.account()
    asker = rig.asker(account)
    resources = [ids.new_id() for _ in range(30)]
    first = {resource: await rig.releases.release(asker, resource, "collection") for resource in resources}
    done = asyncio.Event()
    made: list[str] = []

    async def read() -> None:
        while not done.is_set():
            for resource in resources:
                assert await rig.releases.release(asker, resource, "collection") == first[resource]

    async def make() -> None:
        while not done.is_set():
            made.append(ids.new_id())
            with contextlib.suppress(Aborted):
                await rig.releases.release(asker, made[-1], "collection")

    workers = [asyncio.create_task(work()) for work in (read, make)]
    for _ in range(5):
        with contextlib.suppress(Aborted):
            await rig.moves.rotate(asker)
    done.set()
    await asyncio.gather(*workers)
    version = (await rig.vault.describe(asker)).version
    assert version > 1
    assert rig.sql("select distinct version from data_keys") == [(version,)]


async def test_a_rotation_that_fails_half_way_changed_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D20: the old version and every wrapping stay, and the next rotation succeeds."""
    account = await rig.account()
    asker = rig.asker(account)
    key = await rig.releases.release(asker, _RESOURCE, "collection")
    before = rig.sql("select * from data_keys"), rig.sql("select * from account_keys")
    with monkeypatch.context() as patch:
        for statement in ("delete_older_keys", "delete_account_keys_below"):
            patch.setattr(Transaction, statement, _fail)
        with pytest.raises(RuntimeError):
            await rig.moves.rotate(asker)
    assert (rig.sql("select * from data_keys"), rig.sql("select * from account_keys")) == before
    assert await rig.releases.release(asker, _RESOURCE, "collection") == key
    await rig.moves.rotate(asker)
    assert await rig.releases.release(asker, _RESOURCE, "collection") == key


def _fail(*_arguments: Any) -> None:
    raise RuntimeError("half way")


_DIE_IN_ROTATION = """
import asyncio, os, signal, sys
from pathlib import Path
from services.keyvault.kms.file import FileKms
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import Rig

def die(self, *_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

async def main(database, account, method):
    rig = Rig(Path(database), FileKms(bytes(range(32))))
    await rig.moves.rotate(rig.asker(account))
    setattr(Transaction, method, die)
    await rig.moves.rotate(rig.asker(account))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "method",
    [
        "accounts",
        "data_keys_of",
        "data_key_ids_of",
        "add_account_keys",
        "rewrap",
        "delete_older_keys",
        "put_in_force",
        "append_each",
    ],
)
async def test_kill_9_at_any_step_of_a_rotation_loses_no_key(tmp_path: Path, method: str) -> None:
    """D20: killed between two statements, all opens as before, and the next rotation succeeds."""
    rig = Rig(tmp_path / "keyvault.db", FileKms(bytes(range(32))))
    account = await rig.account()
    asker = rig.asker(account)
    resources = [ids.new_id() for _ in range(20)]
    before = [await rig.releases.release(asker, resource, "collection") for resource in resources]
    rig.close()
    command = [sys.executable, "-c", _DIE_IN_ROTATION, str(rig.database), account, method]
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = await asyncio.create_subprocess_exec(*command, env=environment)
    assert await asyncio.wait_for(child.wait(), 30) == -signal.SIGKILL
    rig = Rig(rig.database, FileKms(bytes(range(32))))
    assert rig.sql("select distinct version from data_keys") == [(2,)]
    assert [await rig.releases.release(asker, resource, "collection") for resource in resources] == before
    assert (await rig.moves.rotate(asker)).version == 3
    assert [await rig.releases.release(asker, resource, "collection") for resource in resources] == before
    verify_chain(await rig.lines(account))
    rig.close()


async def test_a_rotation_with_a_data_key_that_does_not_open_changes_nothing(rig: Rig) -> None:
    account = await rig.account()
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    rig.sql("update data_keys set wrapped=x'00'")
    with pytest.raises(Exception, match="does not open"):
        await rig.moves.rotate(rig.asker(account))
    assert rig.sql("select version from account_keys") == [(1,)]


async def test_one_rotation_of_an_account_runs_at_a_time(rig: Rig) -> None:
    account, other = await rig.account(), await rig.account()
    calls = [rig.moves.rotate(rig.asker(who)) for who in [account] * 10 + [other]]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, AccountRecord) for result in results] == [True] + [False] * 9 + [True]
    assert all(isinstance(result, AccountRecord | Aborted) for result in results)
    assert (await rig.moves.rotate(rig.asker(account))).version == 3


async def test_a_rotation_in_another_process_is_noticed(rig: Rig, tmp_path: Path) -> None:
    """Two keyvaults on one database: the version is compared in the transaction that moves it."""
    account = await rig.account()
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    twin = Rig(tmp_path / "keyvault.db", rig.kms)
    results = await asyncio.gather(
        *(one.moves.rotate(one.asker(account)) for one in (rig, twin)), return_exceptions=True
    )
    twin.close()
    done = sorted(result.version for result in results if isinstance(result, AccountRecord))
    # The second may also have found the first on its way and finished it.
    assert done in ([2], [2, 2], [2, 3])
    assert all(isinstance(result, AccountRecord | Aborted) for result in results)
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")


async def test_a_rotation_that_cannot_keep_up_gives_up(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moves, "_switch", lambda *_arguments: None)
    with pytest.raises(Aborted):
        await memory_rig.moves.rotate(memory_rig.asker(await memory_rig.account()))


async def test_a_rotation_in_one_step_that_lost_its_place_becomes_a_move(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data keys that came meanwhile are re-wrapped as well."""
    account = await rig.account()
    key = await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    others = {account: {"another"}}
    monkeypatch.setattr(Transaction, "data_key_ids_of", lambda *_arguments: others)
    assert (await rig.moves.rotate(rig.asker(account))).version == 2
    assert rig.sql("select distinct version from data_keys") == [(2,)]
    assert await rig.releases.release(rig.asker(account), _RESOURCE, "collection") == key


async def test_a_disabled_key_is_not_rotated_and_the_attempt_is_recorded(rig: Rig) -> None:
    account = await rig.account()
    await rig.vault.disable(rig.asker(account))
    with pytest.raises(KeyDisabled):
        await rig.moves.rotate(rig.asker(account))
    assert (await rig.acts(account))[-1] == ("key.rotate", "vectorstore", "KEY_DISABLED")


async def test_disable_and_enable_repeat_without_error_and_tell_everybody(rig: Rig) -> None:
    """D14: the push."""
    account = await rig.account()
    with rig.events.watch() as watcher:
        assert (await rig.vault.disable(rig.asker(account))).state is KeyState.DISABLED
        assert (await rig.vault.disable(rig.asker(account))).state is KeyState.DISABLED
        assert (await rig.vault.enable(rig.asker(account))).state is KeyState.ENABLED
        assert (await rig.vault.enable(rig.asker(account))).state is KeyState.ENABLED
        changes = []
        for _ in range(4):
            event = await watcher.next(1.0)
            assert event is not None
            assert event.account == account
            changes.append(event.change)
    assert changes == [KeyChange.DISABLED] * 2 + [KeyChange.ENABLED] * 2


async def test_a_disable_is_durable_before_it_is_answered(rig: Rig) -> None:
    account = await rig.account()
    await rig.vault.disable(rig.asker(account))
    assert rig.sql("select state from accounts where id=:id", id=account) == [("disabled",)]


async def test_a_disable_is_told_although_its_caller_hung_up(rig: Rig) -> None:
    """D14: committed and told are one."""
    account = await rig.account()
    with rig.events.watch() as watcher:
        call = asyncio.create_task(rig.vault.disable(rig.asker(account)))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        event = await watcher.next(5.0)
    assert event is not None
    assert event.change is KeyChange.DISABLED
    await rig.completion.drain()


async def test_a_disable_drops_unsealed_keys_from_memory(rig: Rig) -> None:
    account = await rig.account()
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    if isinstance(rig.kms, FileKms):
        assert rig.kms._keys
    await rig.vault.disable(rig.asker(account))
    if isinstance(rig.kms, FileKms):
        assert not rig.kms._keys


async def test_another_accounts_key_is_beyond_reach(rig: Rig) -> None:
    """D1, D2: every act on one account leaves the other as it was."""
    alice, bob = await rig.account(), await rig.account()
    key = await rig.releases.release(rig.asker(bob), _RESOURCE, "collection")
    before = rig.sql("select * from accounts where id=:id", id=bob)
    await rig.moves.rotate(rig.asker(alice))
    await rig.vault.disable(rig.asker(alice))
    await rig.vault.set_suspended(rig.asker(alice, "gateway"), True)
    await rig.vault.destroy(rig.asker(alice, "gateway"))
    assert rig.sql("select * from accounts where id=:id", id=bob) == before
    assert await rig.releases.release(rig.asker(bob), _RESOURCE, "collection") == key


@pytest.mark.parametrize("act", ["describe", "rotate", "disable", "enable", "destroy"])
async def test_an_unknown_account_is_told_so_by_every_act(rig: Rig, act: str) -> None:
    with pytest.raises(NotFound) as caught:
        await getattr(rig.moves if act == "rotate" else rig.vault, act)(rig.asker(ids.new_id()))
    assert caught.value.reason == "ACCOUNT_NOT_FOUND"


async def test_a_destroyed_account_never_returns(rig: Rig) -> None:
    """F8: no act on it succeeds, and no key or handle of it is left."""
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")
    with rig.events.watch() as watcher:
        await rig.vault.destroy(asker)
        await rig.vault.destroy(asker)
        event = await watcher.next(1.0)
    assert event is not None
    assert (event.change, event.account) == (KeyChange.ACCOUNT_DESTROYED, account)
    for attempt in (
        rig.releases.release(asker, _RESOURCE, "collection"),
        rig.vault.provision(asker),
        rig.vault.enable(asker),
        rig.vault.describe(asker),
        rig.vault.set_suspended(asker, False),
    ):
        with pytest.raises(AccountUnknown):
            await attempt
    assert rig.sql("select count(*) from data_keys")[0][0] == 0
    assert rig.sql("select count(*) from account_keys")[0][0] == 0
    assert ("key.destroy", "vectorstore", "ok") in await rig.acts(account)


async def test_destroyed_keys_leave_the_files_of_the_database(rig: Rig) -> None:
    """F8: neither pages nor the write-ahead log keep a wrapped key or a handle."""
    account = await rig.account()
    asker = rig.asker(account)
    for _ in range(20):
        await rig.releases.release(asker, ids.new_id(), "collection")
    secrets = [
        row[0] for row in rig.sql("select wrapped from data_keys union all select handle from account_keys")
    ]
    assert all(secret in rig.files() for secret in secrets)
    await rig.vault.destroy(asker)
    assert not any(secret in rig.files() for secret in secrets)


async def test_destroyed_keys_stay_in_the_files_once_scrubbing_is_off(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8's twin: the write-ahead log keeps what was deleted."""
    account = await rig.account()
    await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    secret = rig.sql("select wrapped from data_keys")[0][0]

    async def nothing() -> None:
        """Leaves the log as it is."""

    monkeypatch.setattr(rig.store, "scrub", nothing)
    await rig.vault.destroy(rig.asker(account))
    assert secret in rig.files()


async def test_a_destroyed_kms_key_opens_no_backup(memory_rig: Rig) -> None:
    """F9: the database restored from before the destruction, beside a KMS that has destroyed the key."""
    rig = memory_rig
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")
    tables = ("accounts", "account_keys", "data_keys")
    for table in tables:
        rig.sql(f"create table backup_{table} as select * from {table}")
    await rig.vault.destroy(asker)
    rig.sql("delete from accounts")
    for table in tables:
        rig.sql(f"insert into {table} select * from backup_{table}")
    rig.sql("update accounts set audit_sequence=audit_sequence+1")
    with pytest.raises(Exception, match="does not open"):
        await rig.releases.release(asker, _RESOURCE, "collection")


async def test_a_database_belongs_to_one_root_key(rig: Rig) -> None:
    """D26: the root key of another installation is refused before anything is served."""
    await rig.vault.bind_installation()
    await rig.vault.bind_installation()
    other = KmsRegistry(FileKms(bytes(32)) if isinstance(rig.kms, FileKms) else MemoryKms())
    stranger = Vault(rig.store, other, rig.events, rig.clock, rig.completion)
    with pytest.raises(WrongInstallation, match="this database"):
        await stranger.bind_installation()


async def test_acts_of_the_gateway_are_recorded_in_the_chain(rig: Rig) -> None:
    account = await rig.account()
    asker = rig.asker(account, "gateway")
    await rig.vault.record(asker, "token.create", "tok2")
    await rig.vault.destroy(asker)
    await rig.vault.record(asker, "account.delete", "")
    assert [act[0] for act in await rig.acts(account)][1:] == [
        "token.create",
        "key.destroy",
        "account.delete",
    ]
    with pytest.raises(AccountUnknown):
        await rig.vault.record(rig.asker(ids.new_id(), "gateway"), "token.create", "")
    for action, resource in [
        ("key.disable", ""),
        ("token.", ""),
        ("token.create\n", ""),
        ("x" * 10_000, ""),
        ("token.create", "a label of mine"),
        ("token.create", "sealcomb_acc_x"),
        ("token.create", "x" * 65),
    ]:
        with pytest.raises(InvalidArgument):
            await rig.vault.record(asker, action, resource)


async def test_an_act_that_cannot_be_recorded_did_not_happen(rig: Rig) -> None:
    """D17: for administrative acts as for releases."""
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")
    rig.sql(
        "create trigger block before insert on audit_events begin select raise(abort, 'sink blocked'); end"
    )
    before = rig.sql("select * from accounts"), rig.sql("select * from account_keys")
    acts = [
        rig.moves.rotate,
        rig.vault.disable,
        rig.vault.destroy,
        lambda asker: rig.vault.set_suspended(asker, True),
        lambda _asker: rig.vault.provision(rig.asker(ids.new_id())),
    ]
    for act in acts:
        with pytest.raises(Unavailable):
            await act(asker)
    assert (rig.sql("select * from accounts"), rig.sql("select * from account_keys")) == before


def test_the_installations_own_account_is_no_id() -> None:
    assert not ids.is_id(vault.INSTALLATION)
