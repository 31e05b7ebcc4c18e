"""Which collections are open, and that none outlives its key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import FailedPrecondition, KeyDisabled, NotFound, ResourceExhausted, Unavailable
from services.common.rpc.keyvault import KeyEvent
from services.vectorstore.main import on_key_event
from services.vectorstore.node import Limits, Node
from services.vectorstore.opening import Opener
from services.vectorstore.schema import Append
from tests.vectorstore.fakes import ACCOUNT, OTHER, FakeClock, FakeKeyvault, Space, acting, open_node


@pytest.fixture
def keyvault() -> FakeKeyvault:
    """Keyvault's twin."""
    return FakeKeyvault()


@pytest.fixture
def clock() -> FakeClock:
    """A clock to turn."""
    return FakeClock()


@pytest.fixture
async def node(tmp_path: Path, keyvault: FakeKeyvault, clock: FakeClock) -> AsyncIterator[Node]:
    """A node on a fresh folder."""
    made = open_node(tmp_path, keyvault, clock=clock)
    yield made
    await made.close()


async def test_a_collection_is_opened_once_for_all_who_wait(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space(node)
    await space.make()
    opened = []
    true_open = Opener.open

    async def count(self: Opener, descriptor: object) -> object:
        opened.append(descriptor)
        return await true_open(self, descriptor)  # type: ignore[arg-type]

    monkeypatch.setattr(Opener, "open", count)
    uses = await asyncio.gather(*(space.use() for _ in range(20)))
    assert len(opened) == 1
    assert len({id(use.collection) for use in uses}) == 1


async def test_f14_the_least_used_close_under_the_budget_and_come_back_right(
    tmp_path: Path, keyvault: FakeKeyvault
) -> None:
    """F14: memory stays within the budget however many collections there are."""
    budget = 600_000
    node = open_node(tmp_path, keyvault, replace(Limits(), resident_bytes_max=budget))
    space = Space(node)
    for number in range(12):
        await space.make(f"c{number}")
        await space.upsert({f"{number}-{n}": [1, n, number, 0] for n in range(300)}, name=f"c{number}")
        assert node.residency.size_bytes <= budget or node.residency.count == 1
    assert node.residency.count < 12
    for number in range(12):
        assert set(await space.contents(f"c{number}")) == {f"{number}-{n}" for n in range(300)}
        assert node.residency.size_bytes <= budget or node.residency.count == 1
    await node.close()


async def test_f14_memory_of_what_was_closed_is_handed_back(tmp_path: Path, keyvault: FakeKeyvault) -> None:
    """F14: else the allocator keeps what many openings leave, and the process grows beyond its budget."""
    node = open_node(tmp_path, keyvault, replace(Limits(), resident_bytes_max=600_000))
    handed_back = []
    node.residency._give_back = lambda: handed_back.append(node.residency.count)
    space = Space(node)
    for number in range(12):
        await space.make(f"c{number}")
        await space.upsert({f"{number}-{n}": [1, n, number, 0] for n in range(300)}, name=f"c{number}")
    await node.residency.close()
    assert 2 <= len(handed_back) <= 12
    await node.close()


async def test_f14_twin_without_a_budget_all_stay_open(node: Node) -> None:
    """F14's twin: the default budget is far above what these take."""
    space = Space(node)
    for number in range(12):
        await space.make(f"c{number}")
        await space.use(f"c{number}")
    assert node.residency.count == 12


async def test_f14_the_number_of_collections_of_an_account_is_bounded(
    tmp_path: Path, keyvault: FakeKeyvault
) -> None:
    node = open_node(tmp_path, keyvault, replace(Limits(), collections_per_account_max=2))
    await Space(node).make("a")
    await Space(node).make("b")
    with pytest.raises(ResourceExhausted) as caught:
        await Space(node).make("c")
    assert caught.value.reason == "COLLECTION_LIMIT"
    await Space(node, OTHER).make("c")
    await node.close()


async def test_a_disabled_key_ends_access_at_the_event_and_enabling_it_brings_all_back(
    node: Node, keyvault: FakeKeyvault
) -> None:
    space = Space(node)
    await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    keyvault.disabled.add(ACCOUNT)
    await on_key_event(node)(KeyEvent.DISABLED, ACCOUNT, "")
    assert node.residency.count == 0
    with pytest.raises(KeyDisabled):
        await space.contents()
    keyvault.disabled.clear()
    assert set(await space.contents()) == {"a"}


async def test_a_disabled_key_ends_access_at_the_published_bound_without_the_event(
    node: Node, keyvault: FakeKeyvault, clock: FakeClock
) -> None:
    """D14 here, and its twin: until the bound the cached key still works."""
    space = Space(node)
    await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    keyvault.disabled.add(ACCOUNT)
    clock.s += 59
    assert set(await space.contents()) == {"a"}
    clock.s += 2
    with pytest.raises(KeyDisabled):
        await space.contents()


async def test_events_of_one_account_leave_the_others_open(node: Node) -> None:
    mine, theirs = Space(node), Space(node, OTHER)
    for space in (mine, theirs):
        await space.make()
        await space.use()
    await on_key_event(node)(KeyEvent.SUSPENDED, OTHER, "")
    assert node.residency.count == 1
    await on_key_event(node)(KeyEvent.RECONNECTED, "", "")
    assert node.residency.count == 0


async def test_a_destroyed_collection_and_a_destroyed_account_leave_nothing(
    node: Node, keyvault: FakeKeyvault, tmp_path: Path
) -> None:
    space = Space(node)
    kept = await space.make("kept")
    gone = await space.make("gone")
    await space.upsert({"a": [1, 0, 0, 0]}, name="gone")
    (await space.use("gone")).collection.on_applied.__self__.start((await space.use("gone")).key)  # type: ignore[attr-defined]
    await (await space.use("gone")).collection.on_applied.__self__.snapshot()  # type: ignore[attr-defined]
    assert list((tmp_path / "objects").rglob("snap-*"))
    keyvault.destroyed.add((ACCOUNT, gone.id))
    await on_key_event(node)(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, gone.id)
    assert not list((tmp_path / "objects").rglob("snap-*"))
    assert node.store.owned(ACCOUNT) == [(ACCOUNT, kept.id)]
    with pytest.raises(NotFound):
        await space.use("gone")
    await on_key_event(node)(KeyEvent.ACCOUNT_DESTROYED, ACCOUNT, "")
    assert node.store.owned(ACCOUNT) == []


async def test_f8_objects_that_could_not_be_removed_are_removed_with_the_next_attempt(
    node: Node, keyvault: FakeKeyvault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8: an object store that fails in the middle of a deletion leaves no object that nobody knows."""
    space = Space(node)
    gone = await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    use = await space.use()
    keeper = use.collection.on_applied.__self__  # type: ignore[attr-defined]
    keeper.start(use.key)
    await keeper.snapshot()
    keyvault.destroyed.add((ACCOUNT, gone.id))
    delete, left = node._objects.delete, [1]

    def failing(key: str) -> None:
        if not left[0]:
            raise Unavailable("the storage failed", reason="STORAGE_FAILED")
        left[0] -= 1
        delete(key)

    with monkeypatch.context() as patch:
        patch.setattr(node._objects, "delete", failing)
        with pytest.raises(Unavailable):
            await on_key_event(node)(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, gone.id)
    assert node._objects.list("")
    await on_key_event(node)(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, gone.id)
    assert node._objects.list("") == []
    assert node.store.owned(ACCOUNT) == []


async def test_a_collection_whose_keys_are_destroyed_answers_as_if_it_were_gone(
    node: Node, keyvault: FakeKeyvault
) -> None:
    """Between the destruction of the keys and the removal of the rest."""
    space = Space(node)
    descriptor = await space.make()
    await space.use()
    keyvault.destroyed.add((ACCOUNT, descriptor.id))
    await node.lock_account(ACCOUNT)
    with pytest.raises(NotFound) as caught:
        await space.use()
    assert caught.value.reason == "COLLECTION_NOT_FOUND"


async def test_a_drop_during_an_opening_is_not_forgotten(node: Node, keyvault: FakeKeyvault) -> None:
    space = Space(node)
    await space.make()
    opening = asyncio.create_task(space.use())
    while not node.residency._flights:  # noqa: ASYNC110
        await asyncio.sleep(0)
    keyvault.disabled.add(ACCOUNT)
    await node.lock_account(ACCOUNT)
    with pytest.raises(FailedPrecondition):
        await opening
    assert node.residency.count == 0


async def test_a_collection_is_not_read_again_before_its_last_write_is_done(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space(node)
    await space.make()
    await space.use()
    true_append = node.store.append

    def slow(appends: Sequence[Append]) -> list[bool]:
        time.sleep(0.1)
        return true_append(appends)

    monkeypatch.setattr(node.committer, "_append", slow)
    write = asyncio.create_task(space.upsert({"a": [1, 0, 0, 0]}))
    await asyncio.sleep(0.03)
    node.residency.drop_all()
    assert set(await space.contents()) == {"a"}
    await write


async def test_f11_tenants_with_near_identical_data_never_see_one_another(
    tmp_path: Path, keyvault: FakeKeyvault
) -> None:
    """F11: the same names, ids and vectors in many accounts, with writes, deletions and closings between."""
    node = open_node(tmp_path, keyvault, replace(Limits(), resident_bytes_max=300_000))
    accounts = [f"{number:026d}" for number in range(20)]

    async def live(account: str) -> None:
        space = Space(node, account)
        await space.make()
        for turn in range(6):
            vectors = {f"{account}-{n}": [1.0, 0.001 * n, turn, 1.0] for n in range(20)}
            await space.upsert(vectors)
            await space.delete(f"{account}-{turn}")
            found = await space.nearest([1.0, 0.0, turn, 1.0], 50)
            assert found
            assert all(id_.startswith(account) for id_ in found)
            if turn % 2:
                node.residency.drop_account(account)

    await asyncio.gather(*map(live, accounts))
    for account in accounts:
        assert all(id_.startswith(account) for id_ in await Space(node, account).contents())
    await node.close()


async def test_f11_twin_a_store_that_ignores_the_account_is_caught(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F11's twin: were rows found without their account, the seal would still refuse them."""
    mine = await Space(node).make()
    true_read = node.store.read
    monkeypatch.setattr(node.store.__class__, "read", lambda _self, _account, id_: true_read(ACCOUNT, id_))
    foreign = replace(mine, account=OTHER)
    with pytest.raises(Exception, match=r"stored data does not open|no such"), acting(OTHER):
        await node.residency.use(foreign)
