"""A collection is sealed under its newest key alone, whatever is written meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.common.sealing import DataKey
from services.vectorstore import editing, layout, snapshot
from services.vectorstore.node import Node
from services.vectorstore.upkeep import Keeper
from tests.vectorstore.fakes import FakeKeyvault, Space, acting
from tests.vectorstore.test_collection import node, reopen, snapshot_now

__all__ = ["node"]


async def test_a_collection_is_sealed_anew_under_its_newest_key_alone(node: Node) -> None:
    """Log, head and snapshots; also one that is empty, and one that nothing was written to since."""
    keyvault = node.catalog._resources
    assert isinstance(keyvault, FakeKeyvault)
    space = Space(node)
    full, empty = await space.make(), await space.make("empty")
    await space.upsert({"a": [1, 0, 0, 0]})
    await snapshot_now(space)
    await space.upsert({"b": [1, 0, 0, 0]})
    for descriptor in (full, empty):
        old = node.store.sealing_keys(descriptor.id)
        keyvault.rotate(descriptor.account, descriptor.id, "collection")
        with acting(descriptor.account):
            assert (await node.resealer.reseal(descriptor)).left == 0
        named = node.store.sealing_keys(descriptor.id)
        assert len(named) == 1
        assert not named & old
        assert keyvault.reported[(descriptor.account, descriptor.id, "collection")] == named
        with acting(descriptor.account):
            # Nothing is left to do, and nothing is written.
            before = (await space.use(descriptor.name)).collection.head
            await node.resealer.reseal(descriptor)
            assert (await space.use(descriptor.name)).collection.head == before
    await reopen(space)
    assert set(await space.contents()) == {"a", "b"}
    await space.upsert({"c": [1, 0, 0, 0]})


async def test_what_could_not_be_sealed_anew_is_reported_as_in_use(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key goes that something is sealed under: the store is asked, not the intention."""
    keyvault = node.catalog._resources
    assert isinstance(keyvault, FakeKeyvault)
    space = Space(node)
    descriptor = await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    old = node.store.sealing_keys(descriptor.id)
    keyvault.rotate(descriptor.account, descriptor.id, "collection")

    async def fails(_keeper: Keeper, _reseal: DataKey) -> None:
        raise Unavailable("the disk is gone")

    monkeypatch.setattr(Keeper, "snapshot", fails)
    with acting(descriptor.account):
        assert (await node.resealer.reseal(descriptor)).left == 1
    assert keyvault.reported[(descriptor.account, descriptor.id, "collection")] == old
    await reopen(space)
    assert set(await space.contents()) == {"a"}


async def test_a_write_under_the_key_before_does_not_keep_a_reseal_from_its_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that was begun before the rotation may come after it, and names the key that it was given."""
    keyvault = node.catalog._resources
    assert isinstance(keyvault, FakeKeyvault)
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(layout, "_SMALL_BYTES", 0)
    monkeypatch.setattr(snapshot, "RESEAL_SEGMENTS", 1)
    space = Space(node)
    descriptor = await space.make()
    await space.upsert({f"p{number}": [1, number, 0, 0] for number in range(300)})
    await snapshot_now(space)
    before = await space.use()
    old = node.store.sealing_keys(descriptor.id)
    planned, plan = asyncio.Event(), node.store.plan_snapshot
    loop = asyncio.get_running_loop()

    def told(*arguments: Any) -> bool:
        loop.call_soon_threadsafe(planned.set)
        return plan(*arguments)

    monkeypatch.setattr(node.store, "plan_snapshot", told)
    keyvault.rotate(descriptor.account, descriptor.id, "collection")
    with acting(descriptor.account):
        resealing = asyncio.create_task(node.resealer.reseal(descriptor))
        await planned.wait()
        await editing.delete(before, ["p7"])
        async with asyncio.timeout(30):
            assert (await resealing).left == 0
    assert not node.store.sealing_keys(descriptor.id) & old
    assert len(await space.contents()) == 299
