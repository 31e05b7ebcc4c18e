"""The whole store against a dictionary and brute force, under random operations, reopenings and snapshots.

F12: whatever happens in between, an answer never holds a deleted point, never misses the nearest, and
never shows a write that was refused.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Aborted, ResourceExhausted
from services.vectorstore import editing, index, layout, nearest, snapshot, upkeep, writing
from services.vectorstore.documents import DocumentState
from services.vectorstore.filters import OneOf
from services.vectorstore.index import Metric
from services.vectorstore.metadata import fields_of
from services.vectorstore.node import Limits, Node
from services.vectorstore.operations import UpdatePoints
from services.vectorstore.points import PointState
from services.vectorstore.searching import Mode, WantedPassages
from tests.vectorstore.fakes import FakeKeyvault, Space, acting, metadata_of, open_node, settle, vector_of

IDS = st.sampled_from([f"p{n}" for n in range(25)])
VECTORS = st.lists(st.integers(-5, 5).map(float), min_size=3, max_size=3).filter(any)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("upsert"),
            st.dictionaries(
                IDS, st.tuples(VECTORS, st.sampled_from(["red", "blue"])), min_size=3, max_size=12
            ),
        ),
        st.tuples(st.just("delete"), st.lists(IDS, min_size=1, max_size=15)),
        st.tuples(st.just("delete colour"), st.sampled_from(["red", "blue"])),
        st.tuples(
            st.just("recolour"),
            st.tuples(
                st.lists(IDS, min_size=1, max_size=4, unique=True),
                st.sampled_from(["red", "blue"]),
                st.booleans(),
            ),
        ),
        st.tuples(st.just("refused"), IDS),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("snapshot"), st.none()),
        st.tuples(st.just("reseal"), st.none()),
        st.tuples(st.just("query"), VECTORS),
    ),
    min_size=6,
    max_size=30,
)


@dataclass
class Oracle:
    """What the collection must hold."""

    metric: Metric
    points: dict[str, tuple[list[float], str]] = field(default_factory=dict)
    # Of the last write, and by point.
    version: int = 0
    versions: dict[str, int] = field(default_factory=dict)

    def written(self, ids: Iterable[str]) -> None:
        """One write of these points."""
        self.version += 1
        self.versions.update(dict.fromkeys(ids, self.version))

    def scores(self, query: list[float], colour: str | None = None) -> dict[str, float]:
        """Nearness by the definition of the metric; larger is nearer."""
        wanted = np.array(query)
        found = {}
        for id_, (vector, own) in self.points.items():
            if colour is None or own == colour:
                numbers = np.array(vector)
                if self.metric is Metric.L2:
                    found[id_] = -float(((numbers - wanted) ** 2).sum())
                else:
                    found[id_] = float(numbers @ wanted)
                    if self.metric is Metric.COSINE:
                        found[id_] /= float(np.linalg.norm(numbers) * np.linalg.norm(wanted))
        return found


async def check(space: Space, oracle: Oracle, query: list[float]) -> None:
    """The same points, and the same nearest ones with and without a filter."""
    contents = await space.contents()
    assert {id_: np.frombuffer(raw, np.float32).tolist() for id_, (raw, _m, _t) in contents.items()} == {
        id_: vector for id_, (vector, _colour) in oracle.points.items()
    }
    state = (await space.use()).collection.state
    assert isinstance(state, PointState)
    assert {id_: state.version_of(id_) for id_ in oracle.points} == {
        id_: oracle.versions[id_] for id_ in oracle.points
    }
    for colour in (None, "red"):
        scores = oracle.scores(query, colour)
        if colour is not None and not scores:
            continue
        found = await space.nearest(query, 5, condition=OneOf("colour", (colour,)) if colour else None)
        assert set(found) <= set(scores)
        best = sorted(scores.values(), reverse=True)[:5]
        # Points of equal score may stand for one another.
        np.testing.assert_allclose([scores[id_] for id_ in found], best, atol=1e-5)


async def play(steps: list[tuple[str, Any]], metric: Metric, folder: Path) -> None:
    """Plays the steps on a store and on the oracle."""
    keyvault = FakeKeyvault()
    limits = replace(Limits(), snapshot_log_records=7, erase_after_s=0.0)
    node = open_node(folder, keyvault, limits)
    try:
        await Space(node).make(dimension=3, metric=metric)
        oracle = Oracle(metric)
        for name, detail in steps:
            node = await step(node, oracle, name, detail, lambda: open_node(folder, keyvault, limits))
        await check(Space(node), oracle, [1.0, 2.0, -1.0])
        await Space(node).use()
        await node.residency.close()
        await check(Space(node), oracle, [0.0, 0.0, 1.0])
    finally:
        await node.close()


async def step(node: Node, oracle: Oracle, name: str, detail: Any, restart: Any) -> Node:
    """One step; returns the node that serves from then on."""
    space = Space(node)
    match name:
        case "upsert":
            colours = {id_: {"colour": colour} for id_, (_vector, colour) in detail.items()}
            await space.upsert({id_: vector for id_, (vector, _colour) in detail.items()}, colours)
            oracle.points.update(detail)
            oracle.written(detail)
        case "recolour":
            await _recolour(space, oracle, *detail)
        case "delete":
            there = {id_ for id_ in detail if id_ in oracle.points}
            assert await space.delete(*detail) == len(there)
            for id_ in there:
                del oracle.points[id_]
        case "delete colour":
            matching = [id_ for id_, (_vector, colour) in oracle.points.items() if colour == detail]
            if matching:
                condition = OneOf("colour", (detail,))
                deleted = await editing.delete_matching(await space.use(), node.finder, condition)
                assert deleted == len(matching)
            for id_ in matching:
                del oracle.points[id_]
        case "refused":
            true_append, node.committer._append = node.committer._append, _full
            with pytest.raises(ResourceExhausted):
                await space.upsert({detail: [9.0, 9.0, 9.0]})
            node.committer._append = true_append
        case "reopen":
            await node.residency.drop((await space.use()).descriptor.id)
        case "restart":
            await node.close()
            node = restart()
        case "snapshot":
            collection = (await space.use()).collection
            await settle(collection)
            await collection.on_applied.__self__.snapshot()  # type: ignore[attr-defined]
        case "reseal":
            use = await space.use()
            _keyvault(node).rotate(space.account, use.descriptor.id, "collection")
            with acting(space.account):
                assert (await node.resealer.reseal(use.descriptor)).left == 0
        case "query":
            await check(space, oracle, detail)
    return node


def _keyvault(node: Node) -> FakeKeyvault:
    keyvault = node.catalog._resources
    assert isinstance(keyvault, FakeKeyvault)
    return keyvault


@contextmanager
def store() -> Iterator[tuple[Path, pytest.MonkeyPatch]]:
    """A folder for a store whose segments have a few items each."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SEGMENT_BYTES", 200)
        patch.setattr(layout, "_SMALL_BYTES", 60)
        patch.setattr(snapshot, "RESEAL_SEGMENTS", 2)
        patch.setattr(upkeep, "_COMPACT_DEAD_MIN", 2)
        yield Path(folder), patch


async def _recolour(space: Space, oracle: Oracle, ids: list[str], colour: str, stale: bool) -> None:
    """Changes the colour of points; with a version that is not theirs, nothing changes."""
    use, raw = await space.use(), metadata_of({"colour": colour})
    operation = UpdatePoints(ids, [raw] * len(ids), [None] * len(ids))
    versions = [oracle.versions.get(id_, 0) + (stale and place == 0) for place, id_ in enumerate(ids)]
    there = [id_ for id_ in ids if id_ in oracle.points]
    if stale or len(there) < len(ids):
        with pytest.raises(Aborted):
            await editing.update(use, operation, [fields_of(raw)] * len(ids), versions)
        return
    written = await editing.update(use, operation, [fields_of(raw)] * len(ids), versions)
    assert written.count == len(there)
    oracle.points.update({id_: (oracle.points[id_][0], colour) for id_ in there})
    oracle.written(there)
    assert written.version == oracle.version


def _full(_appends: object) -> list[bool]:
    raise ResourceExhausted("the storage is full; nothing was written", reason="STORAGE_FULL")


@settings(max_examples=40)
@given(STEPS, st.sampled_from(list(Metric)))
def test_f12_a_flat_collection_equals_the_oracle(steps: list[tuple[str, Any]], metric: Metric) -> None:
    """F12 with the exact index, which is compacted again and again."""
    with store() as (folder, _patch):
        asyncio.run(play(steps, metric, folder))


@settings(max_examples=40)
@given(STEPS, st.sampled_from(list(Metric)))
def test_f12_a_collection_with_a_graph_equals_the_oracle(
    steps: list[tuple[str, Any]], metric: Metric
) -> None:
    """F12 with graphs built and dropped all the time; so few points are all found by a graph."""
    with store() as (folder, patch):
        patch.setattr(index, "FLAT_MAX", 3)
        patch.setattr(index, "_TAIL_MIN", 2)
        # As if comparing were so dear that every filter is tried on a walk first.
        patch.setattr(nearest, "_SCANNED_A_MS", 1e-3)
        patch.setattr(nearest, "_GATHERED_A_MS", 1e-3)
        patch.setattr(upkeep, "_QUIET_S", 0.0)
        asyncio.run(play(steps, metric, folder))


DOCUMENTS = st.sampled_from([f"d{n}" for n in range(8)])
WORDS = st.lists(st.sampled_from(["wax", "honey", "bee", "key"]), min_size=1, max_size=5).map(" ".join)
DOCUMENT_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.tuples(DOCUMENTS, st.lists(WORDS, max_size=4), st.booleans())),
        st.tuples(st.just("delete"), DOCUMENTS),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("snapshot"), st.none()),
    ),
    min_size=6,
    max_size=25,
)


async def play_documents(steps: list[tuple[str, Any]], folder: Path) -> None:
    """Plays steps on documents, and compares everything at the end and after a reopening."""
    node = open_node(folder, FakeKeyvault(), replace(Limits(), snapshot_log_records=5))
    space = Space(node)
    await space.make("texts", 8, text=True)
    wanted: dict[str, tuple[list[str], bool]] = {}
    for name, detail in steps:
        use = await space.use("texts")
        match name:
            case "put":
                id_, texts, restricted = detail
                await space.put(id_, texts, "texts", principals=["ann"] if restricted else [])
                wanted.setdefault(id_, (texts, restricted))
            case "delete":
                stored = await writing.delete_document(use, detail)
                assert (stored is not None) == (wanted.pop(detail, None) is not None)
            case "reopen":
                await node.residency.drop(use.descriptor.id)
            case "snapshot":
                await settle(use.collection)
                await use.collection.on_applied.__self__.snapshot()  # type: ignore[attr-defined]
    for _ in range(2):
        use = await space.use("texts")
        state = use.collection.state
        assert isinstance(state, DocumentState)
        assert {stored.document.id for stored in state.documents_after(0)} == set(wanted)
        for principals in ([], ["ann"]):
            seen = {
                (id_, place, text)
                for id_, (texts, restricted) in wanted.items()
                if principals or not restricted
                for place, text in enumerate(texts)
            }
            query = WantedPassages(Mode.DENSE, vector_of("q", 8), "", 200, None, principals)
            dense = await node.finder.search_passages(use, query)
            assert {(hit.document.id, hit.passage.index, hit.passage.text) for hit in dense} == seen
            query = WantedPassages(Mode.LEXICAL, None, "wax", 200, None, principals)
            lexical = await node.finder.search_passages(use, query)
            assert {(hit.document.id, hit.passage.index) for hit in lexical} == {
                (id_, place) for id_, place, text in seen if "wax" in text
            }
        await node.residency.drop(use.descriptor.id)
    await node.close()


@settings(max_examples=40)
@given(DOCUMENT_STEPS)
def test_documents_and_their_passages_equal_a_dictionary(steps: list[tuple[str, Any]]) -> None:
    with store() as (folder, patch):
        # A document takes more than a point.
        patch.setattr(layout, "SEGMENT_BYTES", 1000)
        asyncio.run(play_documents(steps, folder))
