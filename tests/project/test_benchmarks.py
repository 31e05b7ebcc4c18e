"""A benchmark that has a bound says when it is missed."""

from __future__ import annotations

import math

import pytest

from benchmarks.retrieval import missed
from benchmarks.vectors.report import Figures, ratios

_GOOD = {"hybrid": {"ndcg@10": 0.56}, "dense": {"ndcg@10": 0.51}, "lexical": {"ndcg@10": 0.5}}


def test_figures_within_the_bounds_miss_nothing() -> None:
    assert missed(_GOOD, 0.01, {"hybrid": 0.56, "dense": 0.5, "loss": 0.01}) == []


@pytest.mark.parametrize("figure", [0.55, math.nan])
def test_a_figure_below_its_bound_and_one_of_no_queries_are_missed(figure: float) -> None:
    (miss,) = missed({**_GOOD, "hybrid": {"ndcg@10": figure}}, 0.0, {"hybrid": 0.56})
    assert miss.startswith("hybrid nDCG@10")


@pytest.mark.parametrize("loss", [0.02, math.nan])
def test_an_index_that_loses_too_much_is_missed(loss: float) -> None:
    assert len(missed(_GOOD, loss, {"loss": 0.01})) == 1


def _figures(**changed: float) -> Figures:
    values = {"one client": 3.0, "four clients": 3.0, "filtered": 10.0, "memory": 1.0, **changed}
    values |= {"batches of 32": 1.0, "written": 1.0}
    return Figures("1", values, {"one client": changed.get("recall", 0.99)})


def test_a_peer_that_did_not_run_and_a_recall_that_is_none_are_missed() -> None:
    peer = Figures("1", dict.fromkeys(_figures().values, 1.0))
    everybody = {"sealcomb": _figures(), "chroma": peer, "hnswlib": peer}
    assert ratios(everybody, ["sealcomb", "chroma", "hnswlib"]) == []
    assert ratios({"sealcomb": _figures()}, ["sealcomb", "chroma"]) == [
        "chroma, one client",
        "chroma, four clients",
        "chroma, filtered",
    ]
    for worse in ({"one client": 1.9}, {"memory": 1.2}, {"memory": math.nan}, {"recall": math.nan}):
        assert len(ratios({**everybody, "sealcomb": _figures(**worse)}, list(everybody))) == 1
