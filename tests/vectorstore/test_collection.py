"""One opened collection: durable before it shows, whole or not at all, right after every restart."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from services.common.errors import Aborted, DataLoss, ResourceExhausted, SealcombError, Unavailable
from services.vectorstore import editing, writing
from services.vectorstore.collection import Decision
from services.vectorstore.documents import DocumentState
from services.vectorstore.node import Limits, Node
from services.vectorstore.operations import UpsertPoints
from services.vectorstore.quotas import Caps
from services.vectorstore.upkeep import Keeper
from tests.vectorstore.fakes import (
    FailingStore,
    FakeKeyvault,
    Space,
    acting,
    open_node,
    settle,
    vector_of,
)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node on a fresh folder."""
    made = open_node(tmp_path, FakeKeyvault())
    yield made
    await made.close()


async def snapshot_now(space: Space, name: str = "things") -> None:
    """Writes a snapshot of a collection."""
    use = await space.use(name)
    await settle(use.collection)
    keeper = use.collection.on_applied.__self__  # type: ignore[attr-defined]
    assert isinstance(keeper, Keeper)
    keeper.start(use.key)
    await keeper.snapshot()


async def reopen(space: Space, name: str = "things") -> None:
    """Closes a collection, so that the next use reads it from disk."""
    use = await space.use(name)
    await space.node.residency.drop(use.descriptor.id)


async def test_points_are_there_after_a_reopening_with_and_without_a_snapshot(node: Node) -> None:
    space = Space(node)
    await space.make()
    await space.upsert({"a": [1, 0, 0, 0], "b": [0, 1, 0, 0]}, {"a": {"n": 1}})
    await space.delete("b")
    before = await space.contents()
    await reopen(space)
    assert await space.contents() == before
    await snapshot_now(space)
    await space.upsert({"c": [0, 0, 1, 0]})
    before = await space.contents()
    await reopen(space)
    assert await space.contents() == before
    assert set(before) == {"a", "c"}
    assert await space.nearest([1, 0, 0, 0], 1) == ["a"]


async def test_a_snapshot_shortens_the_log_and_replaces_the_one_before(node: Node, tmp_path: Path) -> None:
    space = Space(node)
    descriptor = await space.make()
    for number in range(3):
        await space.upsert({str(number): [1, number, 0, 0]})
    await snapshot_now(space)
    await space.upsert({"last": [1, 0, 0, 1]})
    await snapshot_now(space)
    stored = node.store.read(descriptor.account, descriptor.id)
    assert stored is not None
    assert [snapshot.lsn for snapshot in stored.snapshots] == [4]
    assert not stored.records
    (segment,) = stored.parts
    assert node._objects.list("") == sorted([segment.object_key, stored.snapshots[0].object_key])


async def test_f23_a_snapshot_under_writes_is_exactly_the_state_at_its_lsn(node: Node) -> None:
    """F23: a snapshot taken while writers go on, plus the log after it, is the state; never a mixture."""
    space = Space(node)
    await space.make()

    async def write(writer: int) -> None:
        for number in range(40):
            await space.upsert({f"{writer}-{number % 7}": vector_of(f"{writer}{number}", 4).tolist()})
            if number % 5 == 0:
                await space.delete(f"{writer}-{(number + 3) % 7}")

    async def photograph() -> None:
        for _ in range(6):
            await asyncio.sleep(0.01)
            await snapshot_now(space)

    await asyncio.gather(*(write(writer) for writer in range(4)), photograph())
    before = await space.contents()
    await reopen(space)
    assert await space.contents() == before


async def test_writers_share_records_and_each_gets_its_own_answer(node: Node) -> None:
    space = Space(node)
    await space.make()
    use = await space.use()
    counts = await asyncio.gather(*(space.upsert({f"p{n}": [1, n, 0, 0]}) for n in range(60)))
    assert counts == [1] * 60
    assert use.collection.state.points == 60
    assert use.collection.head.lsn < 60


async def test_a_write_that_depends_on_the_state_sees_every_write_before_it(node: Node) -> None:
    space = Space(node)
    await space.make()
    use = await space.use()
    one = UpsertPoints(["a"], np.ones((1, 4), np.float32), [b""], [""])
    # The first keeps the writer busy, so the other two wait side by side.
    writes = [
        space.upsert({"x": [1, 0, 0, 0]}),
        space.upsert({"a": [1, 0, 0, 0]}, {"a": {"kind": "x"}}),
        # Only if it is not there yet.
        editing.upsert(use, one, [{}], versions=[0]),
    ]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert answers[:2] == [1, 1]
    assert isinstance(answers[2], Aborted)
    assert answers[2].reason == "VERSION_CONFLICT"


async def test_counts_in_the_database_follow_replacements_and_deletions(node: Node) -> None:
    space = Space(node)
    descriptor = await space.make()
    await space.upsert({"a": [1, 0, 0, 0], "b": [1, 0, 0, 0]})
    await space.upsert({"b": [1, 1, 0, 0], "c": [1, 0, 0, 0]})
    await space.delete("a", "nobody")
    with acting():
        assert (await node.catalog.listed(descriptor)).points == 2


async def test_f16_a_full_disk_refuses_the_write_changes_nothing_and_reads_go_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: RESOURCE_EXHAUSTED, the same contents, and writes again once there is room."""
    space = Space(node)
    await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    before = await space.contents()
    with monkeypatch.context() as patch:
        patch.setattr(node.store, "append", _full)
        patch.setattr(node.committer, "_append", _full)
        with pytest.raises(ResourceExhausted) as caught:
            await space.upsert({"b": [1, 0, 0, 0]})
        assert caught.value.reason == "STORAGE_FULL"
        assert await space.contents() == before
        await reopen(space)
        assert await space.contents() == before
    await space.upsert({"b": [1, 0, 0, 0]})
    assert set(await space.contents()) == {"a", "b"}


async def test_f16_sqlite_that_is_really_full_says_so(tmp_path: Path) -> None:
    """F16 with the database's own limit of pages."""
    node = open_node(tmp_path, FakeKeyvault())
    sa.event.listen(node._engine, "connect", lambda raw, _record: raw.execute("PRAGMA max_page_count=200"))
    node._engine.dispose()
    space = Space(node)
    await space.make(dimension=256)
    written = 0

    async def fill() -> None:
        nonlocal written
        for number in range(1000):
            await space.upsert({f"{number}-{n}": vector_of(str(n), 256).tolist() for n in range(20)})
            written += 20

    with pytest.raises(ResourceExhausted, match="full"):
        await fill()
    assert written
    assert len(await space.contents()) == written
    await reopen(space)
    assert len(await space.contents()) == written
    await node.close()


def _full(_appends: object) -> list[bool]:
    raise ResourceExhausted("the storage is full; nothing was written", reason="STORAGE_FULL")


async def test_an_unclear_failure_reads_the_truth_from_disk_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit whose answer was lost may be durable; memory must not claim otherwise."""
    space = Space(node)
    await space.make()
    true_append = node.store.append

    def lost(appends: object) -> list[bool]:
        true_append(appends)  # type: ignore[arg-type]
        raise Unavailable("the answer was lost")

    monkeypatch.setattr(node.committer, "_append", lost)
    with pytest.raises(Unavailable):
        await space.upsert({"a": [1, 0, 0, 0]})
    monkeypatch.setattr(node.committer, "_append", true_append)
    assert set(await space.contents()) == {"a"}
    await space.upsert({"b": [1, 0, 0, 0]})
    await reopen(space)
    assert set(await space.contents()) == {"a", "b"}


async def test_a_failed_snapshot_leaves_the_log_and_is_tried_again(node: Node) -> None:
    space = Space(node)
    await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    objects = node._objects
    assert isinstance(objects, FailingStore)
    objects.failure = ResourceExhausted("full", reason="STORAGE_FULL")
    with pytest.raises(SealcombError):
        await snapshot_now(space)
    await reopen(space)
    assert set(await space.contents()) == {"a"}
    objects.failure = None
    await snapshot_now(space)
    assert (await space.use()).collection.head.snapshot_lsn == 1


async def test_two_processes_on_one_collection_the_slower_one_cannot_write(tmp_path: Path) -> None:
    """F15 in small: the head moves only from where the writer believes it is."""
    keyvault = FakeKeyvault()
    first, second = open_node(tmp_path, keyvault), open_node(tmp_path, keyvault)
    spaces = Space(first), Space(second)
    await spaces[0].make()
    await spaces[0].use()
    await spaces[1].upsert({"a": [1, 0, 0, 0]})
    with pytest.raises(SealcombError, match="changed elsewhere"):
        await spaces[0].upsert({"b": [1, 0, 0, 0]})
    # It reads again and goes on.
    await spaces[0].upsert({"b": [1, 0, 0, 0]})
    assert set(await spaces[0].contents()) == {"a", "b"}
    await first.close()
    await second.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM log WHERE lsn = 3", "ROLLBACK_DETECTED"),
        ("DELETE FROM log WHERE lsn = 2", "LOG_BROKEN"),
        ("UPDATE log SET sealed = substr(sealed, 1, 150) WHERE lsn = 3", "OPEN_FAILED"),
        ("UPDATE collections SET head_lsn = 2", "OPEN_FAILED"),
        ("UPDATE log SET sealed = (SELECT sealed FROM log WHERE lsn = 1) WHERE lsn = 2", "OPEN_FAILED"),
    ],
)
async def test_a_changed_database_is_a_named_loss_not_a_wrong_answer(
    node: Node, tmp_path: Path, change: str, reason: str
) -> None:
    space = Space(node)
    await space.make()
    for number in range(3):
        await space.upsert({str(number): [1, number, 0, 0]})
    await reopen(space)
    with sqlite3.connect(tmp_path / "vectorstore.db") as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(DataLoss) as caught:
        await space.contents()
    assert caught.value.reason == reason


async def test_a_missing_or_changed_snapshot_is_a_named_loss(node: Node, tmp_path: Path) -> None:
    space = Space(node)
    await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    await snapshot_now(space)
    await reopen(space)
    paths = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert {path.name.partition("-")[0] for path in paths} == {"snap", "segment"}
    for path in paths:
        whole = path.read_bytes()
        for damage in (whole[:-1], b"", None):
            path.unlink(missing_ok=True)
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(DataLoss) as caught:
                await space.contents()
            assert caught.value.reason == "SNAPSHOT_BROKEN"
        path.write_bytes(whole)
    assert set(await space.contents()) == {"a"}


async def test_compaction_renumbers_under_writes_and_nobody_sees_it(tmp_path: Path) -> None:
    node = open_node(tmp_path, FakeKeyvault())
    space = Space(node)
    await space.make()
    rng = np.random.default_rng(1)
    wanted: dict[str, list[float]] = {}
    for _round in range(60):
        batch = {f"p{n}": rng.normal(size=4).tolist() for n in rng.integers(0, 40, 60)}
        await space.upsert(batch)
        wanted.update(batch)
    use = await space.use()
    await settle(use.collection)
    assert use.collection.state.index.rows < 2000
    assert {
        id_: np.frombuffer(vector, np.float32).tolist()
        for id_, (vector, _m, _t) in (await space.contents()).items()
    } == {id_: np.array(vector, np.float32).tolist() for id_, vector in wanted.items()}
    before = await space.contents()
    await reopen(space)
    assert await space.contents() == before
    await node.close()


async def test_f7_deleted_content_leaves_log_and_snapshots_within_its_bound(tmp_path: Path) -> None:
    """F7: the published bound is `erase_after_s`; here it is short."""
    keyvault = FakeKeyvault()
    node = open_node(tmp_path, keyvault, replace(Limits(), erase_after_s=0.05))
    space = Space(node)
    descriptor = await space.make()
    await space.upsert({"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]})
    await space.delete("a")
    use = await space.use()
    async with asyncio.timeout(5):
        while use.collection.head.snapshot_lsn < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await settle(use.collection)
    stored = node.store.read(descriptor.account, descriptor.id)
    assert stored is not None
    assert not stored[2]
    assert use.collection.tail.deletions is False
    await node.close()


async def test_documents_come_and_go_whole_over_reopenings(node: Node) -> None:
    space = Space(node)
    await space.make("texts", 8, text=True)
    await space.put("d1", ["wax one", "wax two"], "texts", key="k1")
    await space.put("d2", ["honey"], "texts", principals=["ann"])
    await space.put("d3", [], "texts")
    again = await space.put("other", ["x"], "texts", key="k1")
    assert again.document.id == "d1"
    await snapshot_now(space, "texts")
    await writing.delete_document(await space.use("texts"), "d1")
    await space.put("d4", ["wax four"], "texts", key="k1")
    await reopen(space, "texts")
    state = (await space.use("texts")).collection.state
    assert isinstance(state, DocumentState)
    assert [stored.document.id for stored in state.documents_after(0)] == ["d2", "d3", "d4"]
    assert [stored.document.sequence for stored in state.documents_after(0)] == [2, 3, 4]
    assert state.points == 2
    found = state.lexical.search("wax", 10, state.index.live)
    assert [state.passage(row)[0].id for row in found.rows.tolist()] == ["d4"]
    assert state.row_of("d2#00000") is None  # not open to everybody


async def test_a_large_document_shows_as_a_whole(node: Node) -> None:
    space = Space(node)
    await space.make("texts", 8, text=True)
    use = await space.use("texts")
    texts = [f"word{n} other{n * 7} wax" for n in range(4000)]
    task = asyncio.create_task(space.put("big", texts, "texts"))
    seen: set[int] = set()
    while not task.done():
        state = use.collection.state
        assert isinstance(state, DocumentState)
        seen |= {
            state.points,
            len(state.lexical.search("wax", 5000, state.index.live).rows),
            state.documents * 4000,
        }
        await asyncio.sleep(0)
    await task
    assert seen <= {0, 4000}
    assert use.collection.state.points == 4000


async def test_a_refused_decision_changes_nothing_and_spares_the_others(node: Node) -> None:
    space = Space(node)
    await space.make()
    use = await space.use()

    def refuse(_state: object) -> Decision[None]:
        raise ResourceExhausted("no")

    refused = asyncio.create_task(use.collection.write(refuse, use.key))
    kept = asyncio.create_task(space.upsert({"a": [1, 0, 0, 0]}))
    with pytest.raises(ResourceExhausted, match="no"):
        await refused
    assert await kept == 1
    assert use.collection.head.lsn == 1


async def test_a_caller_that_leaves_does_not_take_its_write_along(node: Node) -> None:
    space = Space(node)
    await space.make()
    use = await space.use()
    task = asyncio.create_task(space.upsert({"a": [1, 0, 0, 0]}))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await use.collection.at_rest(lambda: None)
    before = await space.contents()
    await reopen(space)
    assert await space.contents() == before


async def test_a_rotated_key_opens_what_older_keys_sealed(node: Node, tmp_path: Path) -> None:
    keyvault = node.catalog._resources
    assert isinstance(keyvault, FakeKeyvault)
    space = Space(node)
    descriptor = await space.make()
    await space.upsert({"a": [1, 0, 0, 0]})
    await snapshot_now(space)
    await space.upsert({"b": [1, 0, 0, 0]})
    keyvault.rotate(descriptor.account, descriptor.id, "collection")
    keyvault.rotate(descriptor.account, "catalog", "catalog")
    await node.lock_all()
    await space.upsert({"c": [1, 0, 0, 0]})
    await reopen(space)
    assert set(await space.contents()) == {"a", "b", "c"}
    with pytest.raises(SealcombError, match="of this name"):
        await space.make()


async def test_a_collection_may_not_outgrow_its_share(tmp_path: Path) -> None:
    node = open_node(tmp_path, FakeKeyvault(), replace(Limits(), caps=Caps(collection_bytes=200_000)))
    space = Space(node)
    await space.make()

    async def fill() -> None:
        for number in range(100):
            await space.upsert({f"{number}-{n}": [1, n, 0, 0] for n in range(50)})

    with pytest.raises(ResourceExhausted) as caught:
        await fill()
    assert caught.value.reason == "COLLECTION_FULL"
    await space.delete("0-0")
    await node.close()
