"""Data keys go to the right peer, for the right account, once, and never unrecorded.

D1, D2, D8, D12, D14, D17, D22 and C4 of the threat table.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.common import ids
from services.common.errors import (
    InvalidArgument,
    KeyDisabled,
    NotFound,
    ResourceExhausted,
    SealcombError,
    Unavailable,
)
from services.common.sealing import OpenFailed
from services.keyvault import policy, refusals, releases
from services.keyvault.asker import Asker
from services.keyvault.events import KeyChange
from services.keyvault.policy import AccountSuspended, AccountUnknown, KeyUnknown, PurposeRefused
from services.keyvault.records import AccountKey, Wrapping
from services.keyvault.refusals import RecordedRefusals
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import DELETE, MemoryKms, Rig

_RESOURCE = ids.from_bytes(bytes(16))


async def test_the_first_asker_makes_the_key_and_all_later_ones_get_it(rig: Rig) -> None:
    account = await rig.account()
    asker = rig.asker(account)
    first = await rig.releases.release(asker, _RESOURCE, "collection")
    assert await rig.releases.release(asker, _RESOURCE, "collection") == first
    assert await rig.releases.release(asker, _RESOURCE, "collection", first.id) == first
    assert await rig.acts(account) == [
        ("key.provision", "gateway", "ok"),
        ("key.create", "vectorstore", "ok"),
        ("key.release", "vectorstore", "ok"),
        ("key.release", "vectorstore", "ok"),
    ]


async def test_every_resource_and_purpose_has_a_key_of_its_own(rig: Rig) -> None:
    account, other = await rig.account(), ids.new_id()
    keys = [
        await rig.releases.release(rig.asker(account), _RESOURCE, "collection"),
        await rig.releases.release(rig.asker(account), other, "collection"),
        await rig.releases.release(rig.asker(account), "catalog", "catalog"),
        await rig.releases.release(rig.asker(account, "ingest"), _RESOURCE, "documents"),
        await rig.releases.release(rig.asker(account, "gateway"), "profile", "profile"),
        await rig.releases.release(rig.asker(await rig.account()), _RESOURCE, "collection"),
    ]
    assert len({key.id for key in keys}) == len({key.secret for key in keys}) == len(keys)


async def test_two_hundred_first_askers_at_once_get_one_key(rig: Rig) -> None:
    """D22."""
    account = await rig.account()
    asker = rig.asker(account)
    found = await asyncio.gather(*(rig.releases.release(asker, _RESOURCE, "collection") for _ in range(200)))
    assert len({(key.id, key.secret) for key in found}) == 1
    assert rig.sql("select count(*) from data_keys")[0][0] == 1
    assert (await rig.vault.describe(asker)).data_keys == 1


async def test_first_askers_get_different_keys_once_nobody_looks_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D22's twin: without the second look, only the database's own constraint stands in the way."""
    account = await rig.account()
    asker = rig.asker(account)
    look = Transaction.data_key
    monkeypatch.setattr(
        Transaction, "data_key", lambda self, wanted: look(self, wanted) if wanted.key_id else None
    )
    results = await asyncio.gather(
        *(rig.releases.release(asker, _RESOURCE, "collection") for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, Unavailable) for result in results) == 19
    rig.sql("drop index data_keys_current")
    await asyncio.gather(*(rig.releases.release(asker, _RESOURCE, "collection") for _ in range(5)))
    assert rig.sql("select count(*) from data_keys")[0][0] == 6


async def test_a_foreign_key_id_answers_like_one_that_does_not_exist(memory_rig: Rig) -> None:
    """D1, D2: the account is the context's, whatever ids are asked for, and the KMS is never asked."""
    rig = memory_rig
    assert isinstance(rig.kms, MemoryKms)
    alice, bob = await rig.account(), await rig.account()
    bobs = await rig.releases.release(rig.asker(bob), _RESOURCE, "collection")
    rig.kms.unwraps.clear()
    errors = []
    for key_id in (bobs.id, ids.new_id()):
        with pytest.raises(NotFound) as caught:
            await rig.releases.release(rig.asker(alice), _RESOURCE, "collection", key_id)
        errors.append((type(caught.value), caught.value.message, caught.value.reason))
    assert errors[0] == errors[1]
    assert rig.kms.unwraps == []
    mine = await rig.releases.release(rig.asker(alice), _RESOURCE, "collection")
    assert mine.secret != bobs.secret


async def test_a_key_id_opens_only_its_own_resource_and_purpose(rig: Rig) -> None:
    account = await rig.account()
    key = await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    with pytest.raises(KeyUnknown):
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection", key.id)
    with pytest.raises(KeyUnknown):
        await rig.releases.release(rig.asker(account, "ingest"), _RESOURCE, "documents", key.id)


async def test_a_foreign_key_is_released_once_the_account_is_not_asked_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1's twin: an account taken from the request instead of the context."""
    alice, bob = await rig.account(), await rig.account()
    bobs = await rig.releases.release(rig.asker(bob), _RESOURCE, "collection")
    monkeypatch.setattr(Asker, "account", property(lambda _self: bob))
    stolen = await rig.releases.release(rig.asker(alice), _RESOURCE, "collection")
    assert stolen.secret == bobs.secret


async def test_peers_get_keys_of_their_own_purposes_alone(memory_rig: Rig) -> None:
    """C1, C4's inner half: with a valid certificate and a valid context, and it is in the audit chain."""
    rig = memory_rig
    assert isinstance(rig.kms, MemoryKms)
    account = await rig.account()
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    rig.kms.unwraps.clear()
    for peer in ("ingest", "gateway", "keyvault", "", "vectorstore2"):
        with pytest.raises(PurposeRefused):
            await rig.releases.release(rig.asker(account, peer), _RESOURCE, "collection")
    assert rig.kms.unwraps == []
    refused = [act for act in await rig.acts(account) if act[2] == "PURPOSE_REFUSED"]
    assert len(refused) == 5


async def test_peers_get_each_others_keys_once_the_table_is_off(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the peers' table."""
    account = await rig.account()
    key = await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    monkeypatch.setattr(policy, "peer_refusal", lambda _peer, _purpose: None)
    assert await rig.releases.release(rig.asker(account, "ingest"), _RESOURCE, "collection") == key


async def test_a_thousand_foreign_accounts_are_a_thousand_refusals(memory_rig: Rig) -> None:
    """C4: ids of accounts that do not exist get nothing and make nothing."""
    rig = memory_rig
    for _ in range(100):
        with pytest.raises(AccountUnknown):
            await rig.releases.release(rig.asker(ids.new_id()), _RESOURCE, "collection")
    assert rig.sql("select count(*) from data_keys")[0][0] == 0
    assert rig.sql("select count(*) from audit_events")[0][0] == 0


@pytest.mark.parametrize("column", ["wrapped", "id"])
async def test_swapped_rows_open_nothing(rig: Rig, column: str) -> None:
    """D8: an attacker with the database moves wrapped keys between resources and accounts."""
    alice, bob = await rig.account(), await rig.account()
    other = ids.new_id()
    places = [(alice, _RESOURCE), (alice, other), (bob, _RESOURCE)]
    keys = [
        await rig.releases.release(rig.asker(account), resource, "collection") for account, resource in places
    ]
    values = [rig.sql(f"select {column} from data_keys where id=:id", id=key.id)[0][0] for key in keys]
    if column == "id":
        rig.sql("update data_keys set id='x'||id")
        values = [f"{value}" for value in values]
    for number, key in enumerate(keys):
        prefix = "x" if column == "id" else ""
        rig.sql(
            f"update data_keys set {column}=:value where id=:id",
            value=values[(number + 1) % 3],
            id=prefix + key.id,
        )
    for account, resource in places:
        with pytest.raises(OpenFailed):
            await rig.releases.release(rig.asker(account), resource, "collection")
        assert (await rig.acts(account))[-1] == ("key.release", "vectorstore", "OPEN_FAILED")


async def test_a_row_that_changes_account_or_purpose_opens_nothing(rig: Rig) -> None:
    """D8: the same wrapped key, its row relabelled."""
    alice, bob = await rig.account(), await rig.account()
    await rig.releases.release(rig.asker(bob), _RESOURCE, "collection")
    rig.sql("update data_keys set account=:alice", alice=alice)
    with pytest.raises(OpenFailed):
        await rig.releases.release(rig.asker(alice), _RESOURCE, "collection")
    rig.sql("update data_keys set account=:bob, purpose='documents'", bob=bob)
    with pytest.raises(OpenFailed):
        await rig.releases.release(rig.asker(bob, "ingest"), _RESOURCE, "documents")


async def test_swapped_account_keys_open_nothing(rig: Rig) -> None:
    """D8, D9: the account keys' handles exchanged in the database."""
    alice, bob = await rig.account(), await rig.account()
    for account in (alice, bob):
        await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    handles = dict(rig.sql("select account, handle from account_keys"))
    rig.sql("update account_keys set handle='x' where account=:a", a=alice)
    rig.sql("update account_keys set handle=:h where account=:a", h=handles[alice], a=bob)
    rig.sql("update account_keys set handle=:h where account=:a", h=handles[bob], a=alice)
    for account in (alice, bob):
        with pytest.raises(OpenFailed):
            await rig.releases.release(rig.asker(account), _RESOURCE, "collection")


async def test_a_disabled_key_releases_nothing_from_the_answer_on(rig: Rig) -> None:
    """D14: no release that began before or after is later than the answer to the disable."""
    account = await rig.account()
    asker = rig.asker(account)
    key = await rig.releases.release(asker, _RESOURCE, "collection")
    answered = asyncio.Event()
    late = []

    async def hammer() -> None:
        while True:
            began_after = answered.is_set()
            try:
                await rig.releases.release(asker, _RESOURCE, "collection")
                late.append(began_after)
            except KeyDisabled:
                return

    hammers = [asyncio.create_task(hammer()) for _ in range(20)]
    await asyncio.sleep(0.02)
    await rig.vault.disable(asker)
    answered.set()
    await asyncio.gather(*hammers)
    assert late
    assert not any(late)
    events = await rig.acts(account)
    disabled_at = events.index(("key.disable", "vectorstore", "ok"))
    assert all(outcome == "KEY_DISABLED" for _action, _peer, outcome in events[disabled_at + 1 :])
    for key_id in ("", key.id, ids.new_id()):
        with pytest.raises(KeyDisabled):
            await rig.releases.release(asker, _RESOURCE, "collection", key_id)
    await rig.vault.enable(asker)
    assert await rig.releases.release(asker, _RESOURCE, "collection") == key


async def test_a_disabled_key_still_releases_once_its_state_is_not_checked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D14's twin."""
    account = await rig.account()
    asker = rig.asker(account)
    key = await rig.releases.release(asker, _RESOURCE, "collection")
    await rig.vault.disable(asker)
    monkeypatch.setattr(policy, "account_refusal", lambda _account: None)
    assert await rig.releases.release(asker, _RESOURCE, "collection") == key


async def test_a_key_disabled_between_look_and_record_is_not_released(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D14: the second decision, under the account's lock, is the one that counts."""
    rig = memory_rig
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")
    unwrap = rig.kms.unwrap

    async def slow(key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        secret = await unwrap(key, wrapping, wrapped)
        await rig.vault.disable(asker)
        return secret

    monkeypatch.setattr(rig.kms, "unwrap", slow)
    with pytest.raises(KeyDisabled):
        await rig.releases.release(asker, _RESOURCE, "collection")


async def test_a_suspended_account_releases_nothing(rig: Rig) -> None:
    account = await rig.account()
    asker = rig.asker(account)
    key = await rig.releases.release(asker, _RESOURCE, "collection")
    await rig.vault.set_suspended(rig.asker(account, "gateway"), True)
    with pytest.raises(AccountSuspended):
        await rig.releases.release(asker, _RESOURCE, "collection")
    await rig.vault.set_suspended(rig.asker(account, "gateway"), False)
    assert await rig.releases.release(asker, _RESOURCE, "collection") == key


async def test_no_key_leaves_that_cannot_be_recorded(rig: Rig) -> None:
    """D17: the audit table refuses; then the disk is full."""
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")
    rig.sql(
        "create trigger block before insert on audit_events begin select raise(abort, 'sink blocked'); end"
    )
    for resource in (_RESOURCE, ids.new_id()):
        with pytest.raises(Unavailable) as caught:
            await rig.releases.release(asker, resource, "collection")
        assert "sink" not in caught.value.message
    assert rig.sql("select count(*) from data_keys")[0][0] == 1
    rig.sql("drop trigger block")
    await rig.releases.release(asker, _RESOURCE, "collection")


async def test_keys_leave_unrecorded_once_recording_is_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """D17's twin."""
    account = await rig.account()
    asker = rig.asker(account)
    rig.sql(
        "create trigger block before insert on audit_events begin select raise(abort, 'sink blocked'); end"
    )
    monkeypatch.setattr(Transaction, "append", lambda *_arguments: None)
    await rig.releases.release(asker, _RESOURCE, "collection")
    assert len(await rig.acts(account)) == 1


async def test_a_full_disk_releases_nothing_and_says_so(rig: Rig) -> None:
    """D17, F16: a real "database or disk is full" from SQLite."""
    account = await rig.account()
    asker = rig.asker(account)
    await rig.releases.release(asker, _RESOURCE, "collection")

    def limit(tx: Transaction, pages: int | None) -> None:
        connection = tx._connection
        count = connection.exec_driver_sql("pragma page_count").scalar_one()
        connection.exec_driver_sql(f"pragma max_page_count={pages or count}")

    await rig.store.write(lambda tx: limit(tx, None))
    before = await rig.acts(account)
    released = 0
    refusal: SealcombError | None = None
    while refusal is None:
        try:
            await rig.releases.release(asker, _RESOURCE, "collection")
            released += 1
        except SealcombError as error:
            refusal = error
    assert isinstance(refusal, ResourceExhausted)
    assert refusal.reason == "STORAGE_FULL"
    assert len(await rig.acts(account)) == len(before) + released
    await rig.store.write(lambda tx: limit(tx, 1_000_000))
    await rig.releases.release(asker, _RESOURCE, "collection")


async def test_a_kms_that_is_down_is_an_error_and_never_another_key(memory_rig: Rig) -> None:
    """D12."""
    rig = memory_rig
    assert isinstance(rig.kms, MemoryKms)
    account = await rig.account()
    asker = rig.asker(account)
    key = await rig.releases.release(asker, _RESOURCE, "collection")
    rig.kms.down = True
    for resource in (_RESOURCE, ids.new_id()):
        with pytest.raises(Unavailable):
            await rig.releases.release(asker, resource, "collection")
    rig.kms.down = False
    assert await rig.releases.release(asker, _RESOURCE, "collection") == key
    assert ("key.release", "vectorstore", "UNAVAILABLE") in await rig.acts(account)


async def test_a_destroyed_resource_is_gone_for_good(rig: Rig) -> None:
    """F8: and a racing asker cannot make it a new key; repeating it is no error."""
    account = await rig.account()
    asker, deleter = rig.asker(account), rig.asker(account, method=DELETE)
    key = await rig.releases.release(asker, _RESOURCE, "collection")
    await rig.releases.release(rig.asker(account, "ingest"), _RESOURCE, "documents")
    kept = await rig.releases.release(asker, ids.new_id(), "collection")
    with rig.events.watch() as watcher:
        await rig.releases.destroy(deleter, _RESOURCE)
        await rig.releases.destroy(deleter, _RESOURCE)
        event = await watcher.next(1.0)
    assert event is not None
    assert (event.change, event.account, event.resource) == (KeyChange.RESOURCE_DESTROYED, account, _RESOURCE)
    for key_id in ("", key.id):
        with pytest.raises(KeyUnknown):
            await rig.releases.release(asker, _RESOURCE, "collection", key_id)
    with pytest.raises(KeyUnknown):
        await rig.releases.release(rig.asker(account, "ingest"), _RESOURCE, "documents")
    assert rig.sql("select id from data_keys") == [(kept.id,)]
    assert (await rig.vault.describe(asker)).data_keys == 1


async def test_destruction_and_first_release_race_to_one_end(rig: Rig) -> None:
    """Whoever wins, no key of the destroyed resource is left."""
    account = await rig.account()
    asker, deleter = rig.asker(account), rig.asker(account, method=DELETE)
    for _ in range(20):
        resource = ids.new_id()
        calls = [rig.releases.release(asker, resource, "collection") for _ in range(3)]
        await asyncio.gather(*calls, rig.releases.destroy(deleter, resource), return_exceptions=True)
    assert rig.sql("select count(*) from data_keys")[0][0] == 0


async def test_a_key_returns_from_the_dead_once_destruction_is_forgotten(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: without the memory of what was destroyed, a late asker makes a key for it."""
    account = await rig.account()
    monkeypatch.setattr(Transaction, "is_destroyed", lambda *_arguments: False)
    await rig.releases.destroy(rig.asker(account, method=DELETE), _RESOURCE)
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")


async def test_destruction_is_refused_to_others_and_recorded(rig: Rig) -> None:
    account = await rig.account()
    await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    for asker in (
        rig.asker(account),
        rig.asker(account, "ingest", DELETE),
        rig.asker(account, "gateway", DELETE),
    ):
        with pytest.raises(PurposeRefused):
            await rig.releases.destroy(asker, _RESOURCE)
    with pytest.raises(AccountUnknown):
        await rig.releases.destroy(rig.asker(ids.new_id(), method=DELETE), _RESOURCE)
    for odd in ("", "catalog", "x" * 10_000):
        with pytest.raises(InvalidArgument):
            await rig.releases.destroy(rig.asker(account, method=DELETE), odd)
    assert [act[2] for act in await rig.acts(account)].count("PURPOSE_REFUSED") == 3
    assert rig.sql("select count(*) from data_keys")[0][0] == 1


async def test_another_accounts_resource_is_beyond_reach_of_destruction(rig: Rig) -> None:
    """D2."""
    alice, bob = await rig.account(), await rig.account()
    key = await rig.releases.release(rig.asker(bob), _RESOURCE, "collection")
    await rig.releases.destroy(rig.asker(alice, method=DELETE), _RESOURCE)
    assert await rig.releases.release(rig.asker(bob), _RESOURCE, "collection") == key


async def test_an_account_has_a_bounded_number_of_keys(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "_DATA_KEYS_MAX", 2)
    account = await rig.account()
    for _ in range(2):
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    with pytest.raises(ResourceExhausted):
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection")


async def test_malformed_requests_are_named_and_change_nothing(rig: Rig) -> None:
    account = await rig.account()
    for resource, purpose, key_id in [
        ("x", "collection", ""),
        (_RESOURCE, "x", ""),
        (_RESOURCE, "collection", "x"),
        (_RESOURCE, "collection", "é" * 26),
    ]:
        with pytest.raises(InvalidArgument):
            await rig.releases.release(rig.asker(account), resource, purpose, key_id)
    assert len(await rig.acts(account)) == 1


async def test_repeated_refusals_are_recorded_once_a_minute_and_releases_always(rig: Rig) -> None:
    """One account's refused calls do not fill the disk that every account's audit chain needs (D17)."""
    account = await rig.account()
    asker = rig.asker(account)
    await rig.vault.disable(asker)
    for _ in range(50):
        with pytest.raises(KeyDisabled):
            await rig.releases.release(asker, ids.new_id(), "collection")
    with pytest.raises(KeyDisabled):
        await rig.releases.release(asker, "catalog", "catalog")
    assert [act[2] for act in await rig.acts(account)].count("KEY_DISABLED") == 2
    rig.clock.time_s += 60
    with pytest.raises(KeyDisabled):
        await rig.releases.release(asker, ids.new_id(), "collection")
    assert [act[2] for act in await rig.acts(account)].count("KEY_DISABLED") == 3
    await rig.vault.enable(asker)
    for _ in range(50):
        await rig.releases.release(asker, _RESOURCE, "collection")
    assert len(await rig.acts(account)) == 3 + 3 + 50


async def test_repeated_refusals_fill_the_chain_once_they_are_not_remembered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""
    monkeypatch.setattr(RecordedRefusals, "holds", lambda *_arguments: False)
    account = await rig.account()
    await rig.vault.disable(rig.asker(account))
    for _ in range(50):
        with pytest.raises(KeyDisabled):
            await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    assert [act[2] for act in await rig.acts(account)].count("KEY_DISABLED") == 50


def test_the_memory_of_refusals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_ENTRIES_MAX", 3)
    memory = RecordedRefusals()
    for number in range(10):
        memory.note((str(number), "", "", ""), 0.0)
    assert [memory.holds((str(number), "", "", ""), 1.0) for number in range(10)] == [False] * 7 + [True] * 3


async def test_no_plaintext_key_is_in_the_database(rig: Rig) -> None:
    """D25, promise 5: neither in the database nor beside it."""
    account = await rig.account()
    secrets = [
        (await rig.releases.release(rig.asker(account), ids.new_id(), "collection")).secret for _ in range(20)
    ]
    with contextlib.suppress(SealcombError):
        await rig.moves.rotate(rig.asker(account))
    stored = rig.files()
    assert b"data_keys" in stored
    assert not any(secret in stored or secret.hex().encode() in stored for secret in secrets)
