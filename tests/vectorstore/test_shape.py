"""Graphs that outlive a restart: the same answers, nothing of what was deleted, nothing that crashes."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.vectorstore import graph as graph_module
from services.vectorstore import index as index_module
from services.vectorstore import shape, upkeep
from services.vectorstore.index import Graph, Metric, VectorIndex, build_graph, load_graph
from services.vectorstore.node import Limits, Node
from services.vectorstore.reader import DataDamaged
from services.vectorstore.shape import BadShape, unpack
from services.vectorstore.whole import load
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node, settle, vector_of
from tests.vectorstore.snapshots import documents, dumped, points
from tests.vectorstore.test_index import METRICS, clustered, exact, filled, recall, with_graph


def moved(index: VectorIndex) -> VectorIndex:
    """The living rows in an index of their own, with the graph as a snapshot carries it."""
    assert isinstance(index.graph, Graph)
    other = filled(index.metric, index.vectors(np.flatnonzero(index.live)))
    graph = load_graph(memoryview(index.graph.pack(index.live)), other)
    assert graph is not None
    other.adopt_graph(graph)
    return other


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_that_was_packed_finds_what_it_found(metric: Metric) -> None:
    vectors = clustered(4000)
    index = with_graph(filled(metric, vectors))
    other = moved(index)
    for query in clustered(50, seed=2):
        assert other.search(query, 10, 64).rows.tolist() == index.search(query, 10, 64).rows.tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_deletions_before_and_after_it_was_packed_leave_95_percent(metric: Metric) -> None:
    vectors = clustered(4000)
    index = with_graph(filled(metric, vectors))
    index.remove(np.arange(0, 4000, 5))
    index.publish(index.reserve(clustered(100, seed=3)), 100)
    other = moved(moved(index))
    kept = other.vectors(np.arange(other.rows))
    other.remove(np.arange(0, 400, 2))
    found = [
        recall(other.search(query, 10, 64), exact(metric, kept, query, 10, other.live))
        for query in clustered(100, seed=2)
    ]
    assert np.mean(found) >= 0.95
    assert isinstance(other.graph, Graph)
    assert other.graph.until == 3200
    assert other.graph.dead == 1000


def test_a_graph_of_which_all_is_deleted_is_not_packed() -> None:
    index = with_graph(filled(Metric.DOT, clustered(50)))
    index.remove(np.arange(50))
    assert isinstance(index.graph, Graph)
    assert index.graph.pack(index.live) == b""


def test_f7_a_packed_graph_holds_no_vector() -> None:
    """F7: neither a deleted one nor a living one; and its twin: hnswlib's own file holds both."""
    vectors = clustered(300)
    index = with_graph(filled(Metric.DOT, vectors))
    index.remove(np.array([7]))
    assert isinstance(index.graph, Graph)
    packed = index.graph.pack(index.live)
    with graph_module._memory(()) as path:
        index.graph._index.save_index(path)
        raw = Path(path).read_bytes()
    for row in (7, 8):
        assert vectors[row].tobytes() not in packed
        assert vectors[row].tobytes() in raw


_LOAD_ALL = """
import sys, numpy as np
from services.vectorstore.index import Metric, VectorIndex, load_graph
from services.vectorstore.shape import BadShape
raw = sys.stdin.buffer.read()
index = VectorIndex(8, Metric.DOT)
vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
index.publish(index.reserve(vectors), 60)
refused = 0
for place in range(len(raw)):
    for bit in (place % 8,):
        bad = bytearray(raw)
        bad[place] ^= 1 << bit
        try:
            graph = load_graph(memoryview(bytes(bad)), index)
        except BadShape:
            refused += 1
            continue
        for query in vectors[:3]:
            graph.search(query[None], 5, 60)
print(refused)
"""


def test_f1_no_flipped_byte_of_a_graph_crashes_the_process() -> None:
    """F1: behind the seal, which refuses every flip, no link that leads outside reaches native code."""
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    index = with_graph(filled(Metric.DOT, vectors))
    assert isinstance(index.graph, Graph)
    packed = index.graph.pack(index.live)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_ALL], input=packed, capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    # The rest are other links that lead inside, or places that no link uses.
    assert int(done.stdout) > 1000


def test_f1_twin_without_the_check_a_bad_link_would_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1's twin: the check is what refuses; hnswlib itself would read beyond its memory."""
    index = with_graph(filled(Metric.DOT, clustered(60)))
    assert isinstance(index.graph, Graph)
    packed = bytearray(index.graph.pack(index.live))
    place = shape._SHAPE.size + 4 * 60 + 4
    packed[place : place + 4] = struct.pack("<I", 10**9)
    with pytest.raises(BadShape):
        unpack(memoryview(bytes(packed)))
    monkeypatch.setattr(shape, "_check", lambda _shape: None)
    assert unpack(memoryview(bytes(packed)))[0].lowest[0, 1] == 10**9


def test_every_cut_of_a_packed_graph_is_refused() -> None:
    index = with_graph(filled(Metric.DOT, clustered(40)))
    assert isinstance(index.graph, Graph)
    packed = index.graph.pack(index.live)
    for size in range(len(packed)):
        with pytest.raises(BadShape):
            unpack(memoryview(packed)[:size])


@pytest.mark.parametrize("make", [points, documents])
def test_a_snapshot_carries_the_graph(make: Any) -> None:
    state = make()
    without = len(dumped(state))
    graph = build_graph(state.index.plan_graph(), threading.Event())
    state.index.thaw()
    assert graph is not None
    state.index.adopt_graph(graph)
    raw = dumped(state)
    assert len(raw) > without
    loaded = load(raw)[1]
    assert isinstance(loaded.index.graph, Graph)
    assert dumped(loaded) == raw
    # Damage inside has the project's own name.
    bad = bytearray(raw)
    entry = raw.index(loaded.index.graph.pack(loaded.index.live)) + 16
    bad[entry : entry + 4] = b"\xff" * 4
    with pytest.raises(DataDamaged):
        load(bad)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """A node that builds graphs early."""
    monkeypatch.setattr(index_module, "FLAT_MAX", 100)
    made = open_node(tmp_path, FakeKeyvault(), replace(Limits(), snapshot_log_bytes=1 << 30))
    yield made
    await made.close()


async def test_a_collection_has_its_graph_at_once_when_it_is_opened_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space(node)
    descriptor = await space.make(dimension=8)
    await space.upsert({f"p{n}": vector_of(f"p{n}", 8).tolist() for n in range(400)})
    await settle((await space.use()).collection)
    before = await space.nearest(vector_of("q", 8).tolist())
    await space.upsert({"late": vector_of("late", 8).tolist()})
    await node.residency.drop(descriptor.id)

    monkeypatch.setattr(upkeep, "build_graph", lambda *_arguments: pytest.fail("built again"))
    use = await space.use()
    assert isinstance(use.collection.state.index.graph, Graph)
    assert use.collection.state.index.graph.until == 400
    assert await space.nearest(vector_of("q", 8).tolist()) == before
    assert await space.nearest(vector_of("late", 8).tolist(), 1) == ["late"]
    await settle(use.collection)


async def test_a_graph_that_is_built_after_the_last_snapshot_is_in_the_next(node: Node) -> None:
    """Also where nothing was written in between: a snapshot is not replaced by another of its lsn."""
    space = Space(node)
    await space.make(dimension=8)
    index_module.FLAT_MAX = 10_000
    await space.upsert({f"p{n}": vector_of(f"p{n}", 8).tolist() for n in range(400)})
    collection = (await space.use()).collection
    keeper: Any = collection.on_applied.__self__  # type: ignore[attr-defined]
    await keeper.snapshot()
    first = collection.head.snapshot_lsn
    assert first == collection.head.lsn
    index_module.FLAT_MAX = 100
    keeper._consider()
    await settle(collection)
    assert isinstance(collection.state.index.graph, Graph)
    assert collection.head.snapshot_lsn == collection.head.lsn == first + 1
    # And with nothing new there is no further one.
    await keeper.snapshot()
    assert collection.head.snapshot_lsn == first + 1
