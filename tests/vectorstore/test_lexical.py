"""BM25 against a reference written from the formula, and fusion."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vectorstore.fusion import fuse
from services.vectorstore.index import Found
from services.vectorstore.lexical import LexicalIndex, analyse, terms_of

WORDS = ["bee", "bees", "wax", "honey", "sealed", "sealing", "key", "keys", "the", "of", "über", "part4"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=12)


def reference(texts: dict[int, str], query: str) -> dict[int, float]:
    """BM25 as the papers write it, k1 1.2 and b 0.75, idf never negative."""
    passages = {row: Counter(terms_of(text)) for row, text in texts.items()}
    average = sum(sum(terms.values()) for terms in passages.values()) / max(1, len(passages))
    scores: dict[int, float] = {}
    for term in terms_of(query):
        df = sum(term in terms for terms in passages.values())
        for row, terms in passages.items():
            if term in terms:
                idf = math.log(1 + (len(passages) - df + 0.5) / (df + 0.5))
                norm = 1.2 * (1 - 0.75 + 0.75 * sum(terms.values()) / average)
                scores[row] = scores.get(row, 0.0) + idf * terms[term] / (terms[term] + norm)
    return scores


def build(index: LexicalIndex, first: int, texts: list[str]) -> None:
    """Adds passages at once."""
    for _ in index.add(first, analyse(texts)):
        pass
    index.publish(first, len(texts))


@given(TEXTS, TEXTS, st.data())
def test_scores_equal_the_reference_after_additions_and_deletions(
    first: list[str], second: list[str], data: st.DataObject
) -> None:
    index = LexicalIndex()
    build(index, 0, first)
    build(index, len(first), second)
    texts = dict(enumerate(first + second))
    dead = data.draw(st.sets(st.sampled_from(sorted(texts)), max_size=len(texts) - 1))
    index.remove(np.array(sorted(dead), np.int64))
    live = np.array([row not in dead for row in texts])
    query = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join))
    wanted = reference({row: text for row, text in texts.items() if row not in dead}, query)
    found = index.search(query, 100, live)
    assert set(found.rows.tolist()) == set(wanted)
    np.testing.assert_allclose(found.scores, [wanted[row] for row in found.rows.tolist()], rtol=1e-4)
    assert list(found.scores) == sorted(found.scores, reverse=True)


@given(TEXTS, st.data())
def test_a_dump_numbers_living_rows_anew_and_scores_the_same(texts: list[str], data: st.DataObject) -> None:
    index = LexicalIndex()
    build(index, 0, texts)
    dead = data.draw(st.sets(st.integers(0, len(texts) - 1), max_size=len(texts) - 1))
    index.remove(np.array(sorted(dead), np.int64))
    live = np.array([row not in dead for row in range(len(texts))])
    copy = LexicalIndex()
    copy.load(index.dump_lengths(live), index.dump(live))
    old = index.search("bee wax keys", 100, live)
    new = copy.search("bee wax keys", 100, np.ones(int(live.sum()), bool))
    assert np.flatnonzero(live)[new.rows].tolist() == old.rows.tolist()
    np.testing.assert_allclose(new.scores, old.scores)


def test_words_are_folded_stemmed_and_stopped() -> None:
    assert terms_of("The SEALED bees, of Über-Größe; ﬁnal part_4!") == [
        "seal",
        "bee",
        "über",
        "größe",
        "final",
        "part_4",
    ]


def test_a_filter_changes_no_score_and_hides_the_rest() -> None:
    index = LexicalIndex()
    build(index, 0, ["wax", "wax honey", "honey"])
    live = np.ones(3, bool)
    both = index.search("wax", 10, live)
    one = index.search("wax", 10, live, np.array([False, True, True]))
    assert one.rows.tolist() == [1]
    assert one.scores[0] == both.scores[both.rows.tolist().index(1)]


def test_a_query_without_terms_finds_nothing() -> None:
    index = LexicalIndex()
    build(index, 0, ["wax"])
    assert not len(index.search("the of !!!", 10, np.ones(1, bool)).rows)


def test_fusion_takes_half_of_each_scaled_list() -> None:
    dense = Found(np.array([1, 2, 3]), np.array([0.9, 0.5, 0.1]))
    lexical = Found(np.array([3, 4]), np.array([12.0, 2.0]))
    fused = fuse(dense, lexical, 10)
    scores = dict(zip(fused.rows.tolist(), fused.scores.tolist(), strict=True))
    assert scores == pytest.approx({1: 0.5, 2: 0.25, 3: 0.5, 4: 0.0})
    assert fused.rows.tolist()[:2] == [1, 3]


def test_fusion_with_one_list_or_equal_scores_is_defined() -> None:
    nothing = Found(np.empty(0, np.int64), np.empty(0))
    assert not len(fuse(nothing, nothing, 5).rows)
    equal = Found(np.array([7, 8]), np.array([3.0, 3.0]))
    assert fuse(nothing, equal, 5).scores.tolist() == [0.5, 0.5]
