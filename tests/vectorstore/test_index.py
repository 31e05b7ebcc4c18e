"""The vector index: exact while small, a graph when large, right in between."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vectorstore import index as module
from services.vectorstore.index import Found, Metric, VectorIndex, build_graph
from services.vectorstore.nearest import Walk

METRICS = list(Metric)


def clustered(count: int, dimension: int = 64, seed: int = 1) -> Any:
    """Random vectors around the same random centres, as embeddings of one kind of text are."""
    centres = np.random.default_rng(0).normal(size=(50, dimension))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 50, count)] + 0.6 * rng.normal(size=(count, dimension))
    return rows.astype(np.float32)


def filled(metric: Metric, vectors: Any) -> VectorIndex:
    """An index with these vectors as rows 0 and on."""
    made = VectorIndex(vectors.shape[1], metric)
    made.publish(made.reserve(vectors), len(vectors))
    return made


def with_graph(index: VectorIndex) -> VectorIndex:
    """The same with a graph of its present rows."""
    graph = build_graph(index.plan_graph(), threading.Event())
    index.thaw()
    assert graph is not None
    index.adopt_graph(graph)
    return index


def exact(metric: Metric, vectors: Any, query: Any, k: int, allowed: Any) -> list[int]:
    """The nearest rows by the definition of the metric."""
    wide, wanted = vectors.astype(np.float64), query.astype(np.float64)
    if metric is Metric.L2:
        scores = -((wide - wanted) ** 2).sum(1)
    else:
        scores = wide @ wanted
        if metric is Metric.COSINE:
            # Deleted vectors are wiped.
            lengths = np.maximum(np.linalg.norm(wide, axis=1), 1e-30)
            scores = scores / lengths / np.linalg.norm(wanted)
    scores[~allowed] = -np.inf
    return np.argsort(-scores, kind="stable")[: min(k, int(allowed.sum()))].tolist()  # type: ignore[no-any-return]


def recall(found: Found, wanted: list[int]) -> float:
    """The share of the wanted rows that was found."""
    return len(set(found.rows.tolist()) & set(wanted)) / max(1, len(wanted))


@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_index_is_exact_before_and_after_deletions(metric: Metric) -> None:
    vectors = clustered(1400, 384)
    index = filled(metric, vectors)
    allowed = np.ones(len(vectors), bool)
    allowed[::3] = False
    index.remove(np.flatnonzero(~allowed))
    for query in clustered(40, 384, seed=2):
        assert recall(index.search(query, 10), exact(metric, vectors, query, 10, allowed)) == 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_finds_95_percent_at_defaults_with_a_tail_and_deletions(metric: Metric) -> None:
    vectors = clustered(13_000)
    index = with_graph(filled(metric, vectors[:12_000]))
    index.publish(index.reserve(vectors[12_000:]), 1000)
    allowed = np.ones(len(vectors), bool)
    allowed[np.random.default_rng(3).choice(len(vectors), 2000, replace=False)] = False
    index.remove(np.flatnonzero(~allowed))
    found = [
        recall(index.search(query, 10), exact(metric, vectors, query, 10, allowed))
        for query in clustered(200, seed=2)
    ]
    assert np.mean(found) >= 0.95


def test_fewer_living_rows_than_asked_for_are_all_found() -> None:
    vectors = clustered(9000)
    index = with_graph(filled(Metric.L2, vectors))
    index.remove(np.arange(5, 9000))
    assert sorted(index.search(vectors[0], 1000).rows.tolist()) == [0, 1, 2, 3, 4]
    index.remove(np.arange(5))
    assert not len(index.search(vectors[0], 10).rows)


def test_a_walk_that_ends_early_falls_back_to_the_exact_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(9000)
    index = with_graph(filled(Metric.COSINE, vectors))
    monkeypatch.setattr(module.Graph, "search", lambda *_arguments: Walk(None))
    allowed = np.ones(len(vectors), bool)
    assert recall(index.search(vectors[7], 10), exact(Metric.COSINE, vectors, vectors[7], 10, allowed)) == 1.0


def test_rows_deleted_while_a_graph_is_built_are_never_found() -> None:
    vectors = clustered(9000)
    index = filled(Metric.COSINE, vectors)
    plan = index.plan_graph()
    index.remove(np.arange(100))
    graph = build_graph(plan, threading.Event())
    index.thaw()
    assert graph is not None
    index.adopt_graph(graph)
    for query in vectors[:100]:
        assert min(index.search(query, 10).rows) >= 100


def test_near_neighbours_far_from_the_origin_are_told_apart() -> None:
    rng = np.random.default_rng(6)
    vectors = (1000 + 0.01 * rng.normal(size=(500, 32))).astype(np.float32)
    index = filled(Metric.L2, vectors)
    allowed = np.ones(500, bool)
    for query in vectors[:20]:
        assert index.search(query, 5).rows.tolist() == exact(Metric.L2, vectors, query, 5, allowed)


def test_f7_a_deleted_vector_is_wiped_from_memory_once_nobody_reads_it() -> None:
    """F7, and its twin: while a capture holds the rows they stay."""
    vectors = clustered(10)
    index = filled(Metric.DOT, vectors)
    held, _live = index.freeze()
    index.remove(np.array([3]))
    assert held[3].tobytes() == vectors[3].tobytes()
    index.thaw()
    assert not index.vectors(np.array([3])).any()


def test_a_small_index_costs_no_graph() -> None:
    index = filled(Metric.COSINE, clustered(module.FLAT_MAX))
    assert not index.wants_graph()
    assert not index.would_like_graph()
    assert index.size_bytes < 3 * module.FLAT_MAX * 64 * 4


def test_a_graph_is_wanted_when_large_and_again_when_full_of_dead_rows() -> None:
    index = filled(Metric.COSINE, clustered(module.FLAT_MAX + 4000))
    assert index.wants_graph()
    with_graph(index)
    assert not index.wants_graph()
    index.remove(np.arange(3900))
    assert index.wants_graph()


def test_building_stops_when_told() -> None:
    stop = threading.Event()
    stop.set()
    assert build_graph(filled(Metric.DOT, clustered(100)).plan_graph(), stop) is None


@given(st.data())
def test_a_flat_index_equals_the_definition_under_random_changes(data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(METRICS))
    numbers = st.integers(-4, 4).map(float)
    row = st.lists(numbers, min_size=3, max_size=3).filter(any)
    vectors = np.array(data.draw(st.lists(row, min_size=1, max_size=30)), np.float32)
    index = filled(metric, vectors)
    dead = data.draw(st.sets(st.integers(0, len(vectors) - 1)))
    index.remove(np.array(sorted(dead), np.int64))
    allowed = np.array([place not in dead for place in range(len(vectors))])
    query = np.array(data.draw(row), np.float32)
    k = data.draw(st.integers(1, 40))
    found = index.search(query, k)
    wanted = exact(metric, vectors, query, k, allowed)
    assert len(found.rows) == len(wanted)
    best = index.search(query, len(vectors))
    scores = dict(zip(best.rows.tolist(), best.scores.tolist(), strict=True))
    # Rows of equal score may change places, so scores are compared.
    np.testing.assert_allclose(found.scores, [scores[place] for place in wanted], atol=1e-6)
