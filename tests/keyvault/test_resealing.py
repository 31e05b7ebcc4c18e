"""New data keys: the old ones open until nothing is sealed under them, and go only then (D6, D20)."""

from __future__ import annotations

from typing import Any

import pytest

from sealcomb_client.audit import verify_chain
from services.common import ids
from services.common.errors import KeyDisabled, SealcombError
from services.keyvault.events import KeyChange
from services.keyvault.policy import KeyUnknown, PermitEnded, PurposeRefused
from services.keyvault.releases import Releases
from services.keyvault.resealing import AGED_FOR_S
from tests.keyvault.rig import Rig

_RESEAL = "/sealcomb.v1.CollectionService/ResealCollection"


def _now_us(rig: Rig) -> int:
    return int(rig.clock.now_s() * 1e6)


def _owner(rig: Rig, account: str) -> Any:
    return rig.asker(account, "gateway", "/sealcomb.v1.KeyService/RotateKey")


async def test_new_keys_are_sealed_with_and_old_ones_still_open(rig: Rig) -> None:
    account, other = await rig.account(), await rig.account()
    asker, resource = rig.asker(account), ids.new_id()
    old = await rig.releases.release(asker, resource, "collection")
    catalog = await rig.releases.release(asker, "catalog", "catalog")
    theirs = await rig.releases.release(rig.asker(other), resource, "collection")
    with rig.events.watch() as watcher:
        await rig.resealing.new_data_keys(_owner(rig, account))
        event = await watcher.next(1.0)
    assert event is not None
    assert (event.change, event.account) == (KeyChange.NEW_DATA_KEYS, account)
    new = await rig.releases.release(asker, resource, "collection")
    assert new != old
    assert await rig.releases.release(asker, resource, "collection") == new
    assert await rig.releases.release(asker, resource, "collection", old.id) == old
    # Names are found by tags under their key, so that stays; and so does everybody else's.
    assert await rig.releases.release(asker, "catalog", "catalog") == catalog
    assert await rig.releases.release(rig.asker(other), resource, "collection") == theirs
    assert await rig.resealing.count_aged(account) == 1
    after = await rig.moves.rotate(_owner(rig, account))
    assert after.data_keys == 3
    assert await rig.releases.release(asker, resource, "collection", old.id) == old
    assert ("data_key.rotate", "gateway", "ok") in await rig.acts(account)


async def test_an_old_key_goes_when_it_is_out_of_use_for_certain(rig: Rig) -> None:
    """D20: not while it is in use, not while something may still be sealed with it; the twin of each goes."""
    account = await rig.account()
    asker, resource = rig.asker(account), ids.new_id()
    old = await rig.releases.release(asker, resource, "collection")
    await rig.resealing.new_data_keys(_owner(rig, account))
    new = await rig.releases.release(asker, resource, "collection")
    resealer = rig.asker(account, method=_RESEAL)
    early = await rig.resealing.report(resealer, resource, "collection", {new.id}, _now_us(rig))
    assert (early.left, early.destroyable_us) == (1, _now_us(rig) + int(AGED_FOR_S * 1e6))
    # A look that is said to have been in the future counts as now.
    future = _now_us(rig) + 10**13
    assert (await rig.resealing.report(resealer, resource, "collection", {new.id}, future)).left == 1
    began_us = _now_us(rig)
    rig.clock.time_s += AGED_FOR_S + 1
    # That look began too early, although it is told now.
    assert (await rig.resealing.report(resealer, resource, "collection", {new.id}, began_us)).left == 1
    in_use = await rig.resealing.report(resealer, resource, "collection", {old.id, new.id}, _now_us(rig))
    assert (in_use.left, in_use.destroyable_us) == (1, 0)
    assert await rig.releases.release(asker, resource, "collection", old.id) == old
    wrapped = rig.sql("select wrapped from data_keys where id=:id", id=old.id)[0][0]
    assert (await rig.resealing.report(resealer, resource, "collection", {new.id}, _now_us(rig))).left == 0
    with pytest.raises(KeyUnknown):
        await rig.releases.release(asker, resource, "collection", old.id)
    assert wrapped not in rig.files()
    assert await rig.releases.release(asker, resource, "collection") == new
    assert (await rig.vault.describe(asker)).data_keys == 1
    assert await rig.resealing.count_aged(account) == 0
    # A current key never goes, whatever is said to be in use.
    assert (await rig.resealing.report(resealer, resource, "collection", (), _now_us(rig))).left == 0
    assert await rig.releases.release(asker, resource, "collection", new.id) == new
    verify_chain(await rig.lines(account))


async def test_only_the_service_whose_key_it_is_reports_it_in_its_own_call(rig: Rig) -> None:
    """C5: another service, another method and a permit destroy nothing; the refusal is in the chain."""
    account, other = await rig.account(), await rig.account()
    resource = ids.new_id()
    await rig.releases.release(rig.asker(account), resource, "collection")
    await rig.resealing.new_data_keys(_owner(rig, account))
    rig.clock.time_s += AGED_FOR_S + 1
    for wrong in (
        rig.asker(account, "ingest", _RESEAL),
        rig.asker(account),
        rig.asker(account, method=_RESEAL, bearer="vectorstore", job_id="job"),
    ):
        with pytest.raises((PurposeRefused, PermitEnded)):
            await rig.resealing.report(wrong, resource, "collection", (), _now_us(rig))
    catalog = rig.asker(account, method=_RESEAL)
    with pytest.raises(PurposeRefused):
        await rig.resealing.report(catalog, "catalog", "catalog", (), _now_us(rig))
    elsewhere = await rig.resealing.report(
        rig.asker(other, method=_RESEAL), resource, "collection", (), _now_us(rig)
    )
    assert elsewhere.left == 0
    assert await rig.resealing.count_aged(account) == 1
    assert ("data_key.destroy", "ingest", "PURPOSE_REFUSED") in await rig.acts(account)


async def test_a_key_that_is_off_is_neither_renewed_nor_tidied(rig: Rig) -> None:
    account = await rig.account()
    await rig.vault.disable(rig.asker(account))
    with pytest.raises(KeyDisabled):
        await rig.resealing.new_data_keys(_owner(rig, account))
    with pytest.raises(KeyDisabled):
        await rig.resealing.report(rig.asker(account, method=_RESEAL), ids.new_id(), "collection", (), 0)
    with pytest.raises(SealcombError):
        await rig.resealing.new_data_keys(_owner(rig, ids.new_id()))


async def test_a_key_that_was_released_often_enough_has_another_take_its_place(rig: Rig) -> None:
    """D6: the limit of one data key's use, here a tiny one; opening wears nothing."""
    limited = Releases(rig.store, rig.registry, rig.events, rig.clock, rig.completion, releases_max=3)
    account = await rig.account()
    asker, resource = rig.asker(account), ids.new_id()
    first = [await limited.release(asker, resource, "collection") for _ in range(3)]
    assert len({key.id for key in first}) == 1
    for _ in range(5):
        assert await limited.release(asker, resource, "collection", first[0].id) == first[0]
    second = [await limited.release(asker, resource, "collection") for _ in range(3)]
    assert {key.id for key in second} != {first[0].id}
    assert len({key.id for key in second}) == 1
    assert await rig.resealing.count_aged(account) == 1
    assert await limited.release(asker, resource, "collection", first[0].id) == first[0]


async def test_without_the_limit_it_is_the_same_key_for_ever(rig: Rig) -> None:
    """The twin."""
    account = await rig.account()
    resource = ids.new_id()
    keys = {(await rig.releases.release(rig.asker(account), resource, "collection")).id for _ in range(10)}
    assert len(keys) == 1
