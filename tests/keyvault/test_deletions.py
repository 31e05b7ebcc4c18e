"""Scheduled deletion and deletion receipts (D21): off at once, gone when due, called off until then."""

from __future__ import annotations

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealcomb_client.statements import CHECKPOINT, RECEIPT, StatementRefused, verify_statement
from services.common import ids
from services.common.errors import InvalidArgument, KeyDisabled, SealcombError
from services.keyvault import vault as vault_module
from services.keyvault.events import KeyChange
from services.keyvault.policy import AccountUnknown, KeyPendingDeletion
from services.keyvault.records import KeyState
from tests.keyvault.rig import DELETE, Rig

_DAY_S = 86_400.0


def _public_key(rig: Rig) -> bytes:
    return rig.statements.public_pem.encode()


async def test_a_scheduled_deletion_refuses_at_once_and_destroys_only_when_due(rig: Rig) -> None:
    """D21: no key leaves from the moment of scheduling; the day before it is due all is still there."""
    account = await rig.account()
    resource = ids.new_id()
    asker = rig.asker(account)
    key = await rig.releases.release(asker, resource, "collection")
    with rig.events.watch() as watcher:
        scheduled = await rig.deletions.schedule(rig.asker(account), 7)
        event = await watcher.next(1.0)
    assert event is not None
    assert (event.change, event.account) == (KeyChange.DISABLED, account)
    assert scheduled.state is KeyState.PENDING_DELETION
    with pytest.raises(KeyDisabled):
        await rig.releases.release(asker, resource, "collection", key.id)
    rig.clock.time_s += 7 * _DAY_S - 1
    assert await rig.deletions.destroy_due() == 0
    assert len(rig.sql("SELECT * FROM data_keys WHERE account = :account", account=account)) == 1
    rig.clock.time_s += 2
    assert await rig.deletions.destroy_due() == 1
    with pytest.raises(AccountUnknown):
        await rig.vault.describe(asker)
    assert rig.sql("SELECT * FROM data_keys WHERE account = :account", account=account) == []
    assert await rig.deletions.destroy_due() == 0
    actions = [action for action, _, outcome in await rig.acts(account) if outcome == "ok"]
    assert actions[-2:] == ["key.schedule_deletion", "key.destroy"]


async def test_a_deletion_that_is_called_off_leaves_everything_and_the_key_disabled(rig: Rig) -> None:
    """D21: cancel, enable, and the data is there again; nothing is destroyed later either."""
    account = await rig.account()
    resource = ids.new_id()
    key = await rig.releases.release(rig.asker(account), resource, "collection")
    await rig.deletions.schedule(rig.asker(account), 30)
    assert (await rig.deletions.cancel(rig.asker(account))).state is KeyState.DISABLED
    rig.clock.time_s += 31 * _DAY_S
    assert await rig.deletions.destroy_due() == 0
    await rig.vault.enable(rig.asker(account))
    assert await rig.releases.release(rig.asker(account), resource, "collection", key.id) == key


async def test_cancelling_between_the_look_and_the_destruction_destroys_nothing(rig: Rig) -> None:
    """D21: what is due is decided in the transaction that destroys."""
    account = await rig.account()
    await rig.deletions.schedule(rig.asker(account), 7)
    rig.clock.time_s += 8 * _DAY_S
    await rig.deletions.cancel(rig.asker(account))
    await rig.vault.destroy_due(rig.asker(account))
    assert (await rig.vault.describe(rig.asker(account))).state is KeyState.DISABLED


async def test_without_that_decision_a_cancelled_deletion_destroys(rig: Rig) -> None:
    """The twin of the test above: the plain destruction does not ask whether anything is due."""
    account = await rig.account()
    await rig.deletions.schedule(rig.asker(account), 7)
    await rig.deletions.cancel(rig.asker(account))
    await rig.vault.destroy(rig.asker(account))
    with pytest.raises(AccountUnknown):
        await rig.vault.describe(rig.asker(account))


async def test_a_key_that_waits_for_deletion_is_not_switched_by_other_means(rig: Rig) -> None:
    """Enable and disable would both forget that it is to be destroyed."""
    account = await rig.account()
    await rig.deletions.schedule(rig.asker(account), 0)
    due_us = await rig.deletions.due_us(account)
    assert due_us == int((rig.clock.now_s() + 30 * _DAY_S) * 1e6)
    for act in (rig.vault.enable, rig.vault.disable):
        with pytest.raises(KeyPendingDeletion):
            await act(rig.asker(account))
    with pytest.raises(KeyPendingDeletion):
        await rig.deletions.schedule(rig.asker(account), 7)
    with pytest.raises(SealcombError):
        await rig.moves.rotate(rig.asker(account))
    assert await rig.deletions.due_us(account) == due_us
    refused = [(action, outcome) for action, _, outcome in await rig.acts(account) if outcome != "ok"]
    assert refused == [
        ("key.enable", "KEY_PENDING_DELETION"),
        ("key.disable", "KEY_PENDING_DELETION"),
        ("key.schedule_deletion", "KEY_PENDING_DELETION"),
        ("key.rotate", "KEY_DISABLED"),
    ]


@pytest.mark.parametrize("days", [1, 6, 31, 4_000_000_000])
async def test_a_wait_is_seven_to_thirty_days(memory_rig: Rig, days: int) -> None:
    account = await memory_rig.account()
    with pytest.raises(InvalidArgument):
        await memory_rig.deletions.schedule(memory_rig.asker(account), days)


async def test_immediate_destruction_wants_the_accounts_own_id(rig: Rig) -> None:
    """D21: a mistaken call destroys nothing."""
    account, other = await rig.account(), await rig.account()
    for confirm in (other, account[:-1], account.upper() + "x"):
        with pytest.raises(InvalidArgument):
            await rig.deletions.destroy_now(rig.asker(account), confirm)
    assert (await rig.vault.describe(rig.asker(account))).state is KeyState.ENABLED
    await rig.deletions.destroy_now(rig.asker(account), account)
    with pytest.raises(AccountUnknown):
        await rig.vault.describe(rig.asker(account))
    assert (await rig.vault.describe(rig.asker(other))).state is KeyState.ENABLED


async def test_cancelling_what_is_not_scheduled_is_refused_and_recorded(memory_rig: Rig) -> None:
    account = await memory_rig.account()
    with pytest.raises(SealcombError) as caught:
        await memory_rig.deletions.cancel(memory_rig.asker(account))
    assert caught.value.reason == "KEY_NOT_PENDING_DELETION"
    assert (await memory_rig.acts(account))[-1][2] == "KEY_NOT_PENDING_DELETION"


async def test_the_loop_destroys_what_is_due_and_survives_a_failing_store(memory_rig: Rig) -> None:
    account = await memory_rig.account()
    await memory_rig.deletions.schedule(memory_rig.asker(account), 7)
    memory_rig.clock.time_s += 8 * _DAY_S
    loop = asyncio.create_task(memory_rig.deletions.run())
    for _ in range(200):
        if await memory_rig.read(lambda tx: tx.destruction(account, "")) is not None:
            break
        await asyncio.sleep(0.01)
    loop.cancel()
    with pytest.raises(AccountUnknown):
        await memory_rig.vault.describe(memory_rig.asker(account))


async def test_a_receipt_of_a_collection_names_every_key_destroyed(rig: Rig) -> None:
    account = await rig.account()
    resource, other = ids.new_id(), ids.new_id()
    key = await rig.releases.release(rig.asker(account), resource, "collection")
    documents = await rig.releases.release(rig.asker(account, "ingest"), resource, "documents")
    await rig.releases.release(rig.asker(account), other, "collection")
    assert await rig.receipts.of(account, resource) == ""
    await rig.releases.destroy(rig.asker(account, method=DELETE), resource)
    text = await rig.receipts.of(account, resource)
    fields = verify_statement(text, RECEIPT, _public_key(rig))
    assert fields["data_key_ids"] == sorted([key.id, documents.id])
    assert (fields["account"], fields["resource"], fields["data_keys"]) == (account, resource, 2)
    assert fields["destroy_us"] == fields["kms_due_us"] == int(rig.clock.now_s() * 1e6)
    # Destroyed again: the receipt is still the first one.
    rig.clock.time_s += 60
    await rig.releases.destroy(rig.asker(account, method=DELETE), resource)
    assert await rig.receipts.of(account, resource) == text


async def test_a_receipt_of_an_account_outlives_the_account(rig: Rig) -> None:
    account = await rig.account()
    key = await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    await rig.vault.destroy(rig.asker(account))
    text = await rig.receipts.of(account)
    fields = verify_statement(text, RECEIPT, _public_key(rig))
    assert fields["data_key_ids"] == [key.id]
    assert fields["account_keys"] == [[1, rig.kms.provider]]
    await rig.vault.destroy(rig.asker(account))
    assert await rig.receipts.of(account) == text


async def test_a_changed_receipt_another_key_and_another_kind_are_refused(memory_rig: Rig) -> None:
    rig = memory_rig
    account = await rig.account()
    await rig.vault.destroy(rig.asker(account))
    text = await rig.receipts.of(account)
    fields = json.loads(text)
    for name in fields:
        changed = json.dumps({**fields, name: "0"}, sort_keys=True, separators=(",", ":"))
        with pytest.raises(StatementRefused):
            verify_statement(changed, RECEIPT, _public_key(rig))
    stranger = Ed25519PrivateKey.generate().public_key()
    pem = stranger.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for bad, kind, key in (
        (text, RECEIPT, pem),
        (text, CHECKPOINT, _public_key(rig)),
        (text + " ", RECEIPT, _public_key(rig)),
        ("[]", RECEIPT, _public_key(rig)),
        (text, RECEIPT, b"no key"),
    ):
        with pytest.raises(StatementRefused):
            verify_statement(bad, kind, key)


async def test_a_destruction_and_its_receipt_are_one_transaction(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is destroyed for which there is no receipt."""
    account = await memory_rig.account()

    def fail(*_arguments: object) -> None:
        raise InvalidArgument("no receipt")

    monkeypatch.setattr(vault_module, "record_destruction", fail)
    with pytest.raises(InvalidArgument):
        await memory_rig.vault.destroy(memory_rig.asker(account))
    assert (await memory_rig.vault.describe(memory_rig.asker(account))).state is KeyState.ENABLED
