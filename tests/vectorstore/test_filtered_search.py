"""Filters of any selectivity and any direction: recall at least 0.95, and as many hits as there are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sealcomb.v1 import vector_service_pb2 as vectors_pb
from services.vectorstore import nearest
from services.vectorstore.graph import Graph
from services.vectorstore.index import Found, Mask, Metric, VectorIndex, Vectors
from services.vectorstore.nearest import Strategy
from tests.vectorstore.conftest import Rig
from tests.vectorstore.test_index import clustered, exact, filled, recall, with_graph
from tests.vectorstore.test_servicers import eq, make, struct_of, upsert_of

ROWS = 12_000
TAIL = 300
SHARES = [0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.98, 1.0]
Scores = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    """A graph and a tail."""
    made = with_graph(filled(Metric.COSINE, clustered(ROWS)))
    made.publish(made.reserve(clustered(TAIL, seed=7)), TAIL)
    return made


@pytest.fixture(params=["by cost", "walking"])
def costs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As measured; or as if comparing were so dear that a walk is always tried, as in larger collections."""
    if request.param == "walking":
        monkeypatch.setattr(nearest, "_SCANNED_A_MS", 1e3)
        monkeypatch.setattr(nearest, "_GATHERED_A_MS", 1e3)
    return str(request.param)


def matches(direction: str, share: float, similar: Scores) -> Mask:
    """About this share of the rows: anywhere, the farthest from the query, or the nearest to it."""
    count = max(1, round(share * len(similar)))
    order = np.argsort(similar)
    mask = np.zeros(len(similar), np.bool_)
    if direction == "anywhere":
        mask[np.random.default_rng(3).choice(len(similar), count, replace=False)] = True
    else:
        mask[order[:count] if direction == "farthest" else order[-count:]] = True
    return mask


def measure(index: VectorIndex, direction: str, share: float) -> tuple[float, set[Strategy]]:
    """Recall, and what was done; fails at the first missing or foreign hit."""
    vectors = index.every_vector
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    found, strategies = [], set()
    for query in clustered(20, seed=5):
        allowed = matches(direction, share, unit @ query) & index.live
        hits = index.search(query, 10, allowed=allowed)
        assert len(hits.rows) == min(10, np.count_nonzero(allowed))
        assert allowed[hits.rows].all()
        assert hits.work is not None
        strategies.add(hits.work.strategy)
        found.append(recall(hits, exact(Metric.COSINE, vectors, query, 10, allowed)))
    return float(np.mean(found)), strategies


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize("direction", ["anywhere", "farthest", "nearest"])
@pytest.mark.parametrize("share", SHARES)
def test_recall_is_at_least_95_percent_whatever_matches(
    index: VectorIndex, direction: str, share: float
) -> None:
    assert measure(index, direction, share)[0] >= 0.95


@pytest.fixture(scope="module")
def thinned() -> VectorIndex:
    """A graph of which nearly as many rows are gone as one bears, half of them all of one direction."""
    made = with_graph(filled(Metric.COSINE, clustered(ROWS)))
    made.publish(made.reserve(clustered(TAIL, seed=7)), TAIL)
    unit = made.every_vector / np.linalg.norm(made.every_vector, axis=1, keepdims=True)
    nearest_first = np.argsort(-(unit[:ROWS] @ clustered(20, seed=5)[0]))
    gone = int(0.14 * ROWS)
    made.remove(np.concatenate([nearest_first[:gone], nearest_first[gone::6][:gone]]))
    assert made.graph is not None
    assert made.graph.dead > 0.27 * ROWS
    assert not made.wants_graph()
    return made


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize("direction", ["anywhere", "farthest", "nearest"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.0])
def test_recall_is_at_least_95_percent_where_much_was_deleted(
    thinned: VectorIndex, direction: str, share: float
) -> None:
    assert measure(thinned, direction, share)[0] >= 0.95


def test_twin_a_walk_that_is_trusted_blindly_misses_matches_away_from_the_query(index: VectorIndex) -> None:
    """The twin: whatever of a walk matches, however few, recall falls below the floor."""
    assert isinstance(index.graph, Graph)
    vectors, found = index.every_vector, []
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in clustered(20, seed=5):
        allowed = matches("farthest", 0.9, unit @ query)
        walk = index.graph.search(query[np.newaxis], nearest.EF_DEFAULT, nearest.EF_DEFAULT)
        assert walk.rows is not None
        met = Found(walk.rows[0][allowed[walk.rows[0]]][:10], np.empty(0))
        found.append(recall(met, exact(Metric.COSINE, vectors, query, 10, allowed)))
    assert np.mean(found) < 0.95


def test_walks_are_taken_and_given_up(index: VectorIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the suite above runs through: both ways of walking, and both ways of comparing."""
    assert measure(index, "anywhere", 0.001)[1] == {Strategy.EXACT_MATCHES}
    assert measure(index, "farthest", 0.5)[1] == {Strategy.EXACT_ALL}
    assert measure(index, "anywhere", 0.5)[1] == {Strategy.WALK_MATCHES}
    monkeypatch.setattr(nearest, "_SCANNED_A_MS", 1e3)
    monkeypatch.setattr(nearest, "_GATHERED_A_MS", 1e3)
    assert measure(index, "farthest", 0.5)[1] == {Strategy.EXACT_MATCHES}


def test_a_walk_is_given_up_before_it_costs_more_than_comparing(index: VectorIndex) -> None:
    vectors: Vectors = index.every_vector
    allowed = matches("farthest", 0.5, vectors @ vectors[0])
    work = index.search(vectors[0], 10, allowed=allowed).work
    assert work is not None
    assert (work.strategy, work.given_up) == (Strategy.EXACT_ALL, True)
    sight = index.sight(index.live)
    assert 0 < sight._walk_ms(work.visited) < sight._exact_ms(work.matches)


@pytest.mark.parametrize("metric", list(Metric))
def test_queries_searched_together_find_what_each_finds_alone(metric: Metric) -> None:
    """With a graph and a tail, with filters that some of them walk for and others compare for."""
    made = with_graph(filled(metric, clustered(3_000)))
    made.publish(made.reserve(clustered(100, seed=7)), 100)
    made.remove(np.arange(0, 3_000, 7))
    queries = clustered(70, seed=5)
    middle = np.where(made.live, made.every_vector @ queries[0], -np.inf)
    for allowed in (None, middle > np.median(middle), np.arange(len(middle)) % 500 == 1):
        mask = None if allowed is None else allowed & made.live
        sight = made.sight(made.live.copy())
        together = sight.search_many(queries, 10, 0, mask, threads=2)
        for query, one in zip(queries, together, strict=True):
            alone = sight.search(query, 10, 0, mask)
            assert one.rows.tolist() == alone.rows.tolist()
            np.testing.assert_allclose(one.scores, alone.scores, rtol=1e-12)


async def test_a_query_is_explained_and_its_cost_told_when_asked(rig: Rig) -> None:
    await make(rig)
    points = [vectors_pb.Point(id=str(n), vector=[1, n, 0], metadata=struct_of(odd=n % 2)) for n in range(10)]
    await rig.call("VectorService/Upsert", upsert_of(*points))
    request = vectors_pb.QueryRequest(collection="things", vector=[1, 0, 0], filter=eq("odd", 1))
    silent = await rig.call("VectorService/Query", request)
    assert not silent.HasField("explanation")
    assert silent.cost > 1
    request.explain = True
    told = (await rig.call("VectorService/Query", request)).explanation
    assert told == vectors_pb.Explanation(
        strategy=vectors_pb.Explanation.STRATEGY_EXACT_ALL, matches=5, compared=10
    )
    batch = vectors_pb.QueryBatchRequest(collection="things", queries=[request, request])
    answer = await rig.call("VectorService/QueryBatch", batch)
    assert answer.cost == pytest.approx(1 + sum(result.cost - 1 for result in answer.results))
