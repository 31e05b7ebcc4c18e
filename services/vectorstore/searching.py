"""Queries over an open collection."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.vectorstore.documents import DocumentState
from services.vectorstore.filters import Filter
from services.vectorstore.fusion import DEPTH, fuse
from services.vectorstore.index import Found, Vectors
from services.vectorstore.operations import Document, Passage
from services.vectorstore.residency import Use
from services.vectorstore.state import Point
from services.vectorstore.writing import not_text

_NOTHING = Found(np.empty(0, np.int64), np.empty(0, np.float64))


class Mode(enum.Enum):
    """How passages are ranked."""

    HYBRID = 1
    DENSE = 2
    LEXICAL = 3


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found."""

    point: Point
    score: float
    vector: Vectors | None


@dataclass(frozen=True, slots=True)
class PassageHit:
    """A passage that was found."""

    document: Document
    passage: Passage
    score: float


def query(
    use: Use, vector: Vectors, k: int, ef: int, condition: Filter | None, with_vectors: bool
) -> list[Hit]:
    """The nearest points that match. Under a millisecond for small collections and graphs."""
    state = use.collection.state
    if not state.points:
        return []
    found = state.index.search(vector, k, ef, state.allowed(condition))
    vectors = state.index.vectors(found.rows) if with_vectors else None
    return [
        Hit(state.point(row), score, None if vectors is None else vectors[place])
        for place, (row, score) in enumerate(zip(found.rows.tolist(), found.scores.tolist(), strict=True))
    ]


def search_passages(
    use: Use,
    mode: Mode,
    vector: Vectors | None,
    text: str,
    k: int,
    condition: Filter | None,
    principals: Sequence[str],
) -> list[PassageHit]:
    """The best passages of documents that match and may be seen."""
    state = use.collection.state
    if not isinstance(state, DocumentState):
        raise not_text()
    if not state.points:
        return []
    allowed = state.allowed(condition, principals)
    depth = DEPTH if mode is Mode.HYBRID else k
    dense = lexical = _NOTHING
    if vector is not None and mode is not Mode.LEXICAL:
        dense = state.index.search(vector, depth, 0, allowed)
    if mode is not Mode.DENSE:
        lexical = state.lexical.search(text, depth, state.index.live, allowed)
    match mode:
        case Mode.HYBRID:
            found = fuse(dense, lexical, k)
        case Mode.DENSE:
            found = dense
        case Mode.LEXICAL:
            found = lexical
    return [
        PassageHit(*state.passage(row), score)
        for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
    ]
