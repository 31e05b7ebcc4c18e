"""Sealing anew while nobody calls: for whom, what its permit opens, and when it ends (C4, C5, D1, D20)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sealcomb_client.audit import verify_chain
from services.common import ids
from services.common.context import ContextVerifier
from services.common.errors import KeyDisabled
from services.keyvault import reseals
from services.keyvault.asker import Asker
from services.keyvault.policy import AccountUnknown, KeyUnknown, PermitEnded, PurposeRefused
from services.keyvault.resealing import AGED_FOR_S
from services.keyvault.reseals import Due
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import Rig

_V, _I = "vectorstore", "ingest"
_AGAIN_S = 900


def _now_us(rig: Rig) -> int:
    return int(rig.clock.now_s() * 1e6)


def _worker(rig: Rig, peer: str, due: Due, audience: str = "keyvault") -> Asker:
    """A service that acts under a permit that it was handed."""
    verifier = ContextVerifier(audience, {"keyvault": rig.signing_key.public_key()}, rig.clock)
    return Asker(peer, verifier.verify(due.permit))


async def _replaced(rig: Rig, resources: int = 1) -> tuple[str, list[str]]:
    """An account whose data keys were replaced, and the collections that it has."""
    account = await rig.account()
    names = sorted(ids.new_id() for _ in range(resources))
    for name in names:
        await rig.releases.release(rig.asker(account), name, "collection")
        await rig.releases.release(rig.asker(account, _I), name, "documents")
    await rig.resealing.new_data_keys(rig.asker(account, "gateway", "/sealcomb.v1.KeyService/RotateKey"))
    return account, names


async def test_a_service_is_told_what_to_seal_anew_and_may_while_nobody_calls(rig: Rig) -> None:
    """D20: the whole way, from replaced keys to destroyed ones, without a call of the owner."""
    account, [resource] = await _replaced(rig)
    quiet = await rig.account()
    await rig.releases.release(rig.asker(quiet), ids.new_id(), "collection")
    for peer, purpose in ((_V, "collection"), (_I, "documents")):
        [due] = await rig.reseals.due(peer)
        assert (due.account, due.resources) == (account, [resource])
        assert "permit" not in repr(due)
        worker = _worker(rig, peer, due)
        new = await rig.releases.release(worker, resource, purpose)
        assert (await rig.resealing.report(worker, resource, purpose, {new.id}, _now_us(rig))).left == 1
        # Handed out once for some minutes.
        assert not await rig.reseals.due(peer)
    rig.clock.time_s += AGED_FOR_S + 1
    for peer, purpose in ((_V, "collection"), (_I, "documents")):
        [due] = await rig.reseals.due(peer)
        worker = _worker(rig, peer, due)
        new = await rig.releases.release(worker, resource, purpose)
        assert (await rig.resealing.report(worker, resource, purpose, {new.id}, _now_us(rig))).left == 0
        rig.clock.time_s += _AGAIN_S
        assert not await rig.reseals.due(peer)
        with pytest.raises(PermitEnded):
            await rig.resealing.report(worker, resource, purpose, {new.id}, _now_us(rig))
    assert await rig.resealing.count_aged(account) == 0
    assert not rig.sql("select * from reseals")
    assert ("permit.renew", _I, "ok") in await rig.acts(account)
    verify_chain(await rig.lines(account))


async def test_its_permit_opens_sealed_data_of_that_account_alone(rig: Rig) -> None:
    """C4, D1: no connection, no profile, no other account, nobody else's purpose, no other service."""
    account, [resource] = await _replaced(rig)
    [mine] = await rig.reseals.due(_I)
    worker = _worker(rig, _I, mine)
    for purpose, peer in (("connection", _I), ("collection", _I), ("profile", "gateway")):
        with pytest.raises((PurposeRefused, PermitEnded)):
            await rig.releases.release(
                Asker(peer, worker.context), "profile" if purpose == "profile" else resource, purpose
            )
    # The twin of the first: in a call of the owner that key is the service's to have.
    await rig.releases.release(
        rig.asker(account, _I, "/sealcomb.v1.SourceService/BeginConnection"), resource, "connection"
    )
    other = await rig.account()
    foreign = await rig.releases.release(rig.asker(other, _I), ids.new_id(), "documents")
    with pytest.raises(KeyUnknown):
        await rig.releases.release(worker, resource, "documents", foreign.id)
    with pytest.raises((PurposeRefused, PermitEnded)):
        await rig.resealing.report(worker, resource, "collection", (), _now_us(rig))
    with pytest.raises(PurposeRefused):
        await rig.releases.destroy(worker, resource)
    assert not await rig.reseals.due("gateway")


async def test_without_leave_nothing_is_handed_out(rig: Rig) -> None:
    """C4: a rotation of the account key alone gives none, and neither does any other permit."""
    account = await rig.account()
    resource = ids.new_id()
    await rig.releases.release(rig.asker(account), resource, "collection")
    await rig.moves.rotate(rig.asker(account))
    assert not await rig.reseals.due(_V)
    forged = rig.asker(
        account, method="/sealcomb.v1.CollectionService/ResealCollection", bearer=_V, job_id=ids.new_id()
    )
    with pytest.raises(PermitEnded):
        await rig.resealing.report(forged, resource, "collection", (), _now_us(rig))


@pytest.mark.parametrize("off", ["disable", "suspend", "destroy"])
async def test_it_ends_when_the_account_is_turned_off(rig: Rig, off: str) -> None:
    """C5: permits that are out open nothing from then on, and none is handed out, on again or not."""
    account, [resource] = await _replaced(rig)
    [due] = await rig.reseals.due(_V)
    worker = _worker(rig, _V, due)
    await rig.releases.release(worker, resource, "collection")
    owner = rig.asker(account, "gateway")
    acts: dict[str, Any] = {
        "disable": (rig.vault.disable(owner), lambda: rig.vault.enable(owner)),
        "suspend": (rig.vault.set_suspended(owner, True), lambda: rig.vault.set_suspended(owner, False)),
        "destroy": (rig.vault.destroy(owner), None),
    }
    away, back = acts.pop(off)
    for unused, _ in acts.values():
        unused.close()
    await away
    rig.clock.time_s += _AGAIN_S
    if back is not None:
        await back()
        with pytest.raises(PermitEnded):
            await rig.releases.release(worker, resource, "collection")
    else:
        with pytest.raises(AccountUnknown):
            await rig.releases.release(worker, resource, "collection")
    assert not await rig.reseals.due(_V)
    assert not await rig.reseals.due(_I)
    assert not rig.sql("select * from reseals")


async def test_while_the_account_is_off_nothing_is_handed_out_and_that_is_recorded(rig: Rig) -> None:
    account, _ = await _replaced(rig)
    await rig.vault.disable(rig.asker(account))
    assert not await rig.reseals.due(_V)
    assert ("permit.renew", _V, KeyDisabled.reason) in await rig.acts(account)


async def test_many_resources_are_handed_out_in_parts_and_go_on_after_a_restart(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was handed out and not done comes again: state is what is sealed under which key."""
    monkeypatch.setattr(reseals, "_RESOURCES_MAX", 2)
    _account, names = await _replaced(rig, 5)
    seen = []
    for _ in range(4):
        [due] = await rig.reseals.due(_V)
        seen.append(due.resources)
        rig.clock.time_s += _AGAIN_S
    assert seen == [names[:2], names[2:4], names[4:], names[:2]]


async def test_accounts_are_handed_out_one_by_one_each_with_a_permit_that_is_new(rig: Rig) -> None:
    """However long one account's data takes, the permit of the next has all its time when its turn comes."""
    names = {(await _replaced(rig))[0] for _ in range(6)}
    seen = set[str]()
    for _ in names:
        [due] = await rig.reseals.due(_V)
        assert _worker(rig, _V, due).context.expires_s - rig.clock.now_s() == _AGAIN_S
        seen.add(due.account)
        rig.clock.time_s += 100.0
    assert seen == names
    assert not await rig.reseals.due(_V)


async def test_newer_keys_take_new_leave_and_end_the_older(rig: Rig) -> None:
    account, [resource] = await _replaced(rig)
    [before] = await rig.reseals.due(_V)
    await rig.resealing.new_data_keys(rig.asker(account, "gateway", "/sealcomb.v1.KeyService/RotateKey"))
    with pytest.raises(PermitEnded):
        await rig.releases.release(_worker(rig, _V, before), resource, "collection")
    [after] = await rig.reseals.due(_V)
    await rig.releases.release(_worker(rig, _V, after), resource, "collection")
    assert len(rig.sql("select * from reseals")) == 2


async def test_leave_ends_with_its_time(rig: Rig) -> None:
    await _replaced(rig)
    rig.clock.time_s += 2 * 86_400 + 1
    assert not await rig.reseals.due(_V)
    assert not rig.sql("select * from reseals where peer = :peer", peer=_V)


async def test_leave_that_changes_while_it_is_handed_out_is_left_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two keyvaults on one database: what one has read, the other has changed by the time it is locked."""
    account, _ = await _replaced(rig)
    read = await rig.read(lambda tx: tx.reseals_due(_V, _now_us(rig), 4))
    await rig.resealing.new_data_keys(rig.asker(account, "gateway", "/sealcomb.v1.KeyService/RotateKey"))
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "reseals_due", lambda *_arguments: read)
        assert not await rig.reseals.due(_V)
    [due] = await rig.reseals.due(_V)
    assert due.account == account
    newer = await rig.read(lambda tx: tx.reseal(account, _V))
    assert newer is not None
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "reseals_due", lambda *_arguments: [replace(newer, next_us=0)])
        assert not await rig.reseals.due(_V)


async def test_who_replaces_keys_all_the_time_leaves_no_pile_of_permits(rig: Rig) -> None:
    account, _ = await _replaced(rig)
    for _ in range(40):
        rig.clock.time_s += 100.0
        await rig.resealing.new_data_keys(rig.asker(account, "gateway", "/sealcomb.v1.KeyService/RotateKey"))
    [(count,)] = rig.sql("select count(*) from permits")
    # Two that are open, and those of which a signed one may be about still.
    assert 2 + 2 * 9 <= count <= 2 + 2 * 10
