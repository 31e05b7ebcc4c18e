"""Snapshots in parts: what is new is written, what is gone leaves, and a crash loses nothing.

What an accepted decision asks of them (docs/adr/0016-snapshots-in-parts.md, what must hold) is tested here.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common import ids
from services.common.errors import DataLoss, Unavailable
from services.common.sealing import DataKey, seal
from services.vectorstore import index as index_module
from services.vectorstore import layout, lexical, manifest, segments, snapshot
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Graph, build_graph
from services.vectorstore.log import seal_head
from services.vectorstore.node import Limits, Node
from services.vectorstore.operations import DeleteDocument, DeletePoints
from services.vectorstore.parts import SnapshotBroken, put_object, read_part
from services.vectorstore.reader import DataDamaged
from services.vectorstore.schema import Append, SnapshotRow
from services.vectorstore.snapshot import Wish
from services.vectorstore.state import State
from services.vectorstore.upkeep import Keeper
from services.vectorstore.whole import MAGIC
from tests.vectorstore import fakes
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node, settle, vector_of
from tests.vectorstore.snapshots import (
    KEY,
    SCOPE,
    Stock,
    add,
    documents,
    dump,
    dumped,
    moment_of,
    points,
    put,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of some dozen points, small ones of two."""
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(layout, "_SMALL_BYTES", 300)


def same(one: State, other: State) -> bool:
    """Whether two states hold the same."""
    first, second = dumped(one), dumped(other)
    return first == second


def with_graph(state: State) -> State:
    """The state with a graph over what it has now."""
    graph = build_graph(state.index.plan_graph(), threading.Event())
    state.index.thaw()
    assert graph is not None
    state.index.adopt_graph(graph)
    return state


@pytest.mark.parametrize("make", [points, documents])
@pytest.mark.usefixtures("small")
def test_what_is_read_is_the_state_without_what_is_gone(make: Callable[[], State]) -> None:
    state, stock = make(), Stock()
    stock.write(with_graph(state))
    loaded, found = stock.read()
    assert same(loaded, state)
    assert loaded.next_number == state.next_number
    assert loaded.index.dead == 0
    assert isinstance(loaded.index.graph, Graph)
    assert [segment.part for segment in found.segments] == [segment.part for segment in stock.layout.segments]
    assert len(found.segments) > 2


@pytest.mark.parametrize("make", [points, documents])
@pytest.mark.usefixtures("small")
def test_deletions_are_marked_and_the_segments_stay(make: Callable[[], State]) -> None:
    state, stock = make(), Stock()
    stock.write(with_graph(state))
    state.apply(DeleteDocument("d7") if isinstance(state, DocumentState) else DeletePoints(["p7", "p141"]))
    assert stock.write(state, Wish(has_graph=True)) == [f"snap-{10:020d}"]
    loaded, found = stock.read()
    assert same(loaded, state)
    assert found.gone == stock.layout.gone > 0
    # Also from there: the state that was loaded numbers its items anew.
    stock.layout = found
    put(loaded, 900) if isinstance(loaded, DocumentState) else add(loaded, ["late"])
    stock.write(loaded, Wish(has_graph=True))
    again, _layout = stock.read()
    assert same(again, loaded)
    assert isinstance(again.index.graph, Graph)
    assert again.index.graph.until == loaded.index.graph.until  # type: ignore[union-attr]


def test_one_percent_of_new_points_writes_two_segments_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that must hold: ten segments, and the graph stays where it is."""
    state = points(1250)
    capture = state.capture()
    total = int(capture.sizes(capture.live_items.nonzero()[0]).sum())
    capture.release()
    monkeypatch.setattr(layout, "SEGMENT_BYTES", total // 10 + 1)
    monkeypatch.setattr(layout, "_SMALL_BYTES", total // 300)
    stock = Stock()
    names = stock.write(with_graph(state))
    assert [name.partition("-")[0] for name in names] == ["graph", *["segment"] * 10, "snap"]
    for batch in range(12):
        add(state, [f"new {batch} {number}" for number in range(10)])
        written = stock.write(state, Wish(has_graph=True))
        assert [name.partition("-")[0] for name in written][:-1] in (["segment"], ["segment"] * 2)
    # Small ones are taken together meanwhile.
    assert len(stock.layout.segments) <= 16
    assert same(stock.read()[0], state)


@pytest.mark.parametrize("make", [points, documents])
@pytest.mark.usefixtures("small")
def test_erasing_rewrites_what_has_something_gone_and_leaves_nothing(make: Callable[[], State]) -> None:
    """The third that must hold (F7, F8): no byte of what is gone is in any part; the twin marks it alone."""
    state, stock = make(), Stock()
    stock.write(with_graph(state))
    before = {segment.part.name for segment in stock.layout.segments}
    if isinstance(state, DocumentState):
        gone, secret = DeleteDocument("d7"), b"passage 7 about"
    else:
        gone, secret = DeletePoints(["p141"]), b"text p141."  # type: ignore[assignment]
    state.apply(gone)
    stock.write(state, Wish(has_graph=True))
    assert any(secret in content for content in plaintexts(stock))
    stock.write(state, Wish(erase=True, has_graph=True))
    assert not any(secret in content for content in plaintexts(stock))
    assert stock.layout.gone == 0
    kept = before & {segment.part.name for segment in stock.layout.segments}
    assert len(before) - 3 <= len(kept) < len(before)
    loaded, _layout = stock.read()
    assert same(loaded, state)
    # The graph names what it links by ordinal, so it outlives the segments.
    assert isinstance(loaded.index.graph, Graph)


def plaintexts(stock: Stock) -> list[bytes]:
    """What is in the parts that the newest manifest names."""
    objects: Any = stock.objects
    keys = {KEY.id: KEY, stock.key.id: stock.key}
    return [bytes(read_part(objects, keys, SCOPE, part)) for part in stock.layout.parts]


@pytest.mark.usefixtures("small")
def test_parts_that_are_not_the_manifests_own_are_refused_by_name() -> None:
    """The fourth that must hold (F2, F3, F4): older, swapped, doubled, missing, cut, changed, of another."""
    state, stock = points(), Stock()
    stock.write(with_graph(state))
    state.apply(DeletePoints(["p1"]))
    stock.write(state, Wish(erase=True, has_graph=True))
    true, found = stock.objects, stock.manifest
    keys = [f"account/collection/{part.name}" for part in stock.layout.parts]
    for one, other in itertools.permutations(keys, 2):
        stock.objects = type(true)({**true, one: true[other]})
        with pytest.raises(SnapshotBroken):
            stock.read(found)
    for key in keys:
        for damage in (None, true[key][:-1], true[key][:50], true[key] + b"\0", flipped(true[key], 40)):
            stock.objects = type(true)(true)
            if damage is None:
                del stock.objects[key]
            else:
                stock.objects[key] = damage
            with pytest.raises(SnapshotBroken):
                stock.read(found)
    stock.objects = true
    first, second, *rest = found.segments
    for bad in ([second, first, *rest], [first, first, second, *rest], [first, replace(second, items=1)]):
        with pytest.raises(DataLoss):
            stock.read(replace(found, segments=bad))
    # Sealed for another collection under the same name and key.
    identity = replace(SCOPE.identity("segment", 0), resource="other", object=first.part.name[8:])
    stock.objects = type(true)({**true, keys[0]: seal(KEY, identity, b"SCSEGM01")})
    with pytest.raises(SnapshotBroken):
        stock.read(found)
    with pytest.raises(DataDamaged):
        manifest.decode(manifest.encode(replace(found, segments=[first, first])))


def flipped(raw: bytes, place: int) -> bytes:
    """One bit changed."""
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.usefixtures("small")
def test_the_twin_takes_an_older_part_once_digests_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """F3's twin: a part of the same name that was sealed before would pass for the true one."""
    state, stock = points(30), Stock()
    stock.write(state)
    (key,) = [key for key in stock.objects if "segment" in key][:1]
    name = key.rpartition("/")[2]
    listed = next(one for one in stock.manifest.segments if one.part.name == name)
    other = Stock()
    monkeypatch.setattr(snapshot, "new_name", lambda _kind: name)
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1 << 30)
    older = points(2)
    other.write(older)
    stock.objects[key] = other.objects[key]
    monkeypatch.undo()
    found = replace(stock.manifest, segments=[replace(listed, items=1)])
    with pytest.raises(SnapshotBroken):
        stock.read(found)
    part = replace(listed.part, digest=other.layout.segments[0].part.digest)
    loaded, _layout = stock.read(replace(found, segments=[replace(listed, part=part, items=1)]))
    assert list(loaded.ids_after("")) == ["p1"]


@pytest.mark.usefixtures("small")
def test_parts_are_sealed_anew_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "RESEAL_SEGMENTS", 2)
    state, stock = points(), Stock()
    stock.write(with_graph(state))
    rounds = 0
    stock.key = DataKey(ids.from_bytes(bytes([7] * 16)), bytes(32))
    while any(part.key_id == KEY.id for part in stock.layout.parts):
        rounds += 1
        stock.write(state, Wish(reseal=True, has_graph=True))
        assert same(stock.read()[0], state)
    assert 2 < rounds < 12


def test_postings_of_another_analyser_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Stock()
    stock.write(documents())
    monkeypatch.setattr("services.vectorstore.segments.ANALYSER", "another")
    loaded = stock.read()[0]
    assert isinstance(loaded, DocumentState)
    assert len(loaded.lexical.search("wax", 50, loaded.index.live).rows) == 30
    assert lexical.ANALYSER != "another"


def test_a_cut_or_lengthened_plaintext_is_refused_not_misread() -> None:
    """Authentic bytes of a broken version: each end of a manifest, of a segment and of a graph."""
    for make in (points, documents):
        state, stock = make(6), Stock()
        stock.write(with_graph(state))
        raw = manifest.encode(stock.manifest)
        loads: list[tuple[bytes, Callable[[bytes], object]]] = [(raw, manifest.decode)]
        segment, graph = plaintexts(stock)
        ordinals = stock.read()[1].ordinals
        loads.append((segment, partial(_load_segment, state)))
        loads.append((graph, partial(_adopt_graph, stock, ordinals)))
        for content, load in loads:
            load(content)
            places = range(len(content)) if len(content) < 600 else range(0, len(content), 7)
            for place in places:
                with pytest.raises(DataLoss):
                    load(content[:place])
            for bad in (b"X" + content[1:], content + b"\0"):
                with pytest.raises(DataLoss):
                    load(bad)


def _load_segment(like: State, raw: bytes) -> None:
    segments.load_segment(
        raw, segments.new_state(isinstance(like, DocumentState), 8, like.index.metric), None
    )


def _adopt_graph(stock: Stock, ordinals: layout.Ordinals, raw: bytes) -> None:
    segments.adopt_graph(raw, stock.read()[0], ordinals)


# In whole nodes.


def keeper_of(use: Any) -> Keeper:
    """Who keeps a collection."""
    keeper = use.collection.on_applied.__self__
    assert isinstance(keeper, Keeper)
    return keeper


async def test_a_whole_snapshot_opens_and_the_next_one_is_in_parts(tmp_path: Path) -> None:
    """The fifth that must hold (F24); an older version refuses the manifest by its magic."""
    keyvault = FakeKeyvault()
    node = open_node(tmp_path, keyvault)
    space = Space(node)
    await space.make(dimension=8)
    await space.upsert({f"p{n}": vector_of(f"p{n}", 8).tolist() for n in range(50)})
    await space.delete("p3")
    before = await space.contents()
    await _write_whole(space)
    await node.residency.drop((await space.use()).descriptor.id)
    assert await space.contents() == before
    await space.upsert({"late": [1.0] * 8})
    use = await space.use()
    await keeper_of(use).snapshot()
    names = [key.rpartition("/")[2].partition("-")[0] for key in node._objects.list("")]
    assert names == ["segment", "snap"]
    raw = manifest.encode(manifest.Manifest(moment_of(use.collection.state), 0, [], None))
    assert raw[: len(MAGIC)] != MAGIC
    await node.residency.drop(use.descriptor.id)
    assert set(await space.contents()) == {*before, "late"}
    await node.close()


async def _write_whole(space: Space) -> None:
    """A snapshot as it was written before there were parts."""
    use = await space.use()
    collection, node = use.collection, space.node
    await settle(collection)
    capture = collection.state.capture()
    moment = keeper_of(use)._moment()
    plaintext = b"".join(dump(moment, capture))
    capture.release()
    sealed = seal(use.key, collection.scope.identity("snapshot", moment.lsn), plaintext)
    row = SnapshotRow(
        moment.lsn, f"{fakes.ACCOUNT}/{collection.scope.collection}/snap-{moment.lsn:020d}", use.key.id
    )
    assert node.store.plan_snapshot(collection.scope.collection, collection.epoch, row)
    digest, _size = put_object(node._objects, row.object_key, [sealed])
    head = replace(collection.head, snapshot_lsn=moment.lsn, snapshot_digest=digest)
    raw = seal_head(use.key, collection.scope, head)
    append = Append(collection.scope.collection, 1, head.lsn, head.lsn, raw, 49, 0, 0, trim_to=moment.lsn)
    assert node.store.append([append]) == [True]


class Crash:
    """Fails at the n-th call of a node's storage, before or after it, and at all calls from then on."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self._after = after

    def wrap(self, target: Any, *names: str) -> None:
        """Puts itself in front of some methods."""
        for name in names:
            setattr(target, name, self._guarded(getattr(target, name)))

    def _guarded(self, true: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left < 0 or (self.left == 0 and not self._after):
                raise Unavailable("crashed", reason="CRASHED")
            result = true(*arguments)
            if self.left == 0:
                raise Unavailable("crashed", reason="CRASHED")
            return result

        return call


async def _until_crash(node: Node, space: Space, crash: Crash) -> bool:
    """An erasing snapshot with a deletion and new points behind it; whether it got through."""
    use = await space.use()
    keeper = keeper_of(use)
    await settle(use.collection)
    keeper._upkeep = replace(keeper._upkeep, log_records=1 << 30, log_bytes=1 << 30)
    keeper._erase_due, keeper._key = True, use.key
    crash.wrap(node.store, "plan_snapshot", "forget_snapshot", "forget_part", "noted")
    crash.wrap(node._objects, "put", "delete")
    crash.wrap(node.committer, "_append")
    try:
        await keeper.snapshot()
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize("after", [False, True])
async def test_f12_a_crash_at_any_storage_call_of_a_snapshot_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """The second that must hold (F12, F18): what is read is what was written; nothing is left over."""
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 3000)
    monkeypatch.setattr(layout, "_SMALL_BYTES", 300)
    monkeypatch.setattr(index_module, "FLAT_MAX", 20)
    keyvault, limits = FakeKeyvault(), replace(Limits(), erase_after_s=3600.0)
    node = open_node(tmp_path, keyvault, limits)
    space = Space(node)
    await space.make(dimension=8)
    wanted = {f"p{n}": vector_of(f"p{n}", 8).tolist() for n in range(80)}
    await space.upsert(wanted)
    await settle((await space.use()).collection)
    calls = 0
    through = False
    while not through:
        calls += 1
        name = f"n{calls}"
        await space.upsert({name: vector_of(name, 8).tolist()})
        wanted[name] = vector_of(name, 8).tolist()
        await space.delete(f"p{calls}")
        del wanted[f"p{calls}"]
        through = await _until_crash(node, space, Crash(calls, after=after))
        await node.close()
        node = open_node(tmp_path, keyvault, limits)
        space = Space(node)
        found = await space.contents()
        expected = {id_: np.array(vector, np.float32).tobytes() for id_, vector in wanted.items()}
        assert {id_: vector for id_, (vector, _m, _t) in found.items()} == expected
        # What the crash left goes when the collection is next opened.
        use = await space.use()
        await settle(use.collection)
        needed = {part.name for part in keeper_of(use)._layout.parts}
        stored = {key.rpartition("/")[2] for key in node._objects.list("")}
        assert {name for name in stored if not name.startswith("snap-")} == needed
        assert len(stored) - len(needed) == bool(use.collection.head.snapshot_lsn)
    assert calls > 8
    await node.close()
