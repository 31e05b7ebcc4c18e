"""How near vectors are, for several queries at once: one pass over the vectors serves them all.

Nearness is what a search sorts by and is in single precision; scores are what a caller sees, and are in
double. Nothing here knows which rows live: a wiped vector gives a number like any other, or none.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

# So many rows stay in the processor's cache from being taken until they are compared.
_BLOCK_ROWS = 1024


class Metric(enum.Enum):
    """How near two vectors are."""

    COSINE = 1
    DOT = 2
    L2 = 3


def nearness(metric: Metric, queries: Vectors, vectors: Vectors, scale: Vectors) -> Vectors:
    """A row for each query, a column for each vector; larger is nearer. `scale` is for COSINE alone."""
    if metric is not Metric.L2:
        # One query alone is a product of another kind, and a faster one.
        dots: Vectors = (vectors @ queries[0])[np.newaxis] if len(queries) == 1 else queries @ vectors.T
        if metric is Metric.COSINE:
            dots *= scale
        return dots
    near = np.empty((len(queries), len(vectors)), np.float32)
    # Differences, block by block: |a|^2 - 2ab + |b|^2 loses near neighbours far from the origin.
    for start in range(0, len(vectors), _BLOCK_ROWS):
        part = vectors[start : start + _BLOCK_ROWS]
        for place, query in enumerate(queries):
            apart = part - query
            near[place, start : start + len(part)] = -np.einsum("ij,ij->i", apart, apart)
    return near


def nearness_of(metric: Metric, queries: Vectors, vectors: Vectors, scale: Vectors, rows: Rows) -> Vectors:
    """The same for some of the vectors, which are never all copied at once."""
    near = np.empty((len(queries), len(rows)), np.float32)
    room = np.empty((min(_BLOCK_ROWS, len(rows)), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = rows[start : start + _BLOCK_ROWS]
        # The mode spares a copy; no row is ever outside.
        taken = np.take(vectors, part, axis=0, out=room[: len(part)], mode="clip")
        scales = scale[part] if metric is Metric.COSINE else scale
        near[:, start : start + len(part)] = nearness(metric, queries, taken, scales)
    return near


def best(near: Vectors, count: int) -> Rows:
    """For each query the columns of the nearest, in no order."""
    queries, columns = near.shape
    if count >= columns:
        return np.broadcast_to(np.arange(columns), (queries, columns))
    return np.argpartition(near, columns - count, axis=1)[:, -count:]


def ranked(metric: Metric, query: Vectors, vectors: Vectors, rows: Rows, most: int) -> tuple[Rows, Scores]:
    """The nearest of one query's rows by their exact scores, then by row."""
    taken = vectors[rows].astype(np.float64)
    wanted = query.astype(np.float64)
    if metric is Metric.L2:
        taken -= wanted
        scores: Scores = np.einsum("ij,ij->i", taken, taken)
        order = np.lexsort((rows, scores))[:most]
    else:
        scores = taken @ wanted
        if metric is Metric.COSINE:
            # Squares of lengths within 1e-18 to 1e18 stay far inside double precision.
            scores /= np.sqrt(np.einsum("ij,ij->i", taken, taken) * (wanted @ wanted))
        order = np.lexsort((rows, -scores))[:most]
    return rows[order], scores[order]


def lengths_of(vectors: Vectors) -> Vectors:
    """The length of each vector."""
    # Double precision: the squares of very short or long vectors leave the range of single.
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.asarray(np.sqrt(squares), np.float32)


def unit(vectors: Vectors) -> Vectors:
    """The vectors at length 1."""
    lengths = np.maximum(lengths_of(vectors), np.float32(1e-30))
    return np.asarray(vectors / lengths[:, np.newaxis], np.float32)
