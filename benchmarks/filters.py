"""Filtered queries at every selectivity, toward and away from the query: strategy, recall, CPU time.

In process, without the wire, so that the search itself is seen. "blind" is the twin: a walk that is always
taken and always trusted, as a plain filtered HNSW search is.

    python -m benchmarks.filters [--rows 50000] [--dimension 384] [--queries 20]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import numpy as np

from benchmarks.costs import with_graph
from benchmarks.wire import vectors
from services.vectorstore import nearest

_SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
_TOP_K = 10
_RECALL_LEAST = 0.95


def mask_of(direction: str, share: float, similar: nearest.Vectors) -> nearest.Mask:
    """The rows that match: anywhere, the farthest from the query, or the nearest to it."""
    count = max(1, round(share * len(similar)))
    mask = np.zeros(len(similar), np.bool_)
    if direction == "anywhere":
        mask[np.random.default_rng(3).choice(len(similar), count, replace=False)] = True
    else:
        order = np.argsort(similar)
        mask[order[:count] if direction == "farthest" else order[-count:]] = True
    return mask


def main() -> int:
    """Measures and prints; 1 where recall is below its floor."""
    parser = argparse.ArgumentParser(prog="benchmarks.filters", description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=20)
    arguments = parser.parse_args()
    index, _queries = with_graph(arguments.rows, arguments.dimension)
    sight, graph = index.sight(index.live.copy()), index.graph
    assert graph is not None
    queries = vectors(arguments.queries, arguments.dimension, 2)
    rows = index.every_vector
    print(f"{arguments.rows} x {arguments.dimension}, {arguments.queries} queries; CPU ms of the median one")
    print(f"{'matches':>9} {'direction':10}{'ms':>8}{'recall':>8}  {'ways':36}{'blind ms':>9}{'recall':>8}")
    bad = 0
    for share in _SHARES:
        for direction in ("anywhere", "farthest", "nearest"):
            line, recall = _line(sight, graph, rows, queries, direction, share)
            good = recall >= _RECALL_LEAST
            bad += not good
            print(line + ("" if good else "  missed"), flush=True)
    return int(bad > 0)


def _line(
    sight: nearest.Sight,
    graph: nearest.Walkable,
    rows: nearest.Vectors,
    queries: nearest.Vectors,
    direction: str,
    share: float,
) -> tuple[str, float]:
    times, blind_times, right, blind_right, wanted = [], [], 0, 0, 0
    ways: Counter[str] = Counter()
    for query in queries:
        similar = rows @ query
        mask = mask_of(direction, share, similar)
        best = np.flatnonzero(mask)
        best = best[np.argsort(-similar[best])][:_TOP_K]
        started = time.thread_time()
        found = sight.search(query, _TOP_K, 0, mask)
        times.append(time.thread_time() - started)
        started = time.thread_time()
        walk = graph.search(query[np.newaxis], nearest.EF_DEFAULT, nearest.EF_DEFAULT)
        met = np.empty(0, np.int64) if walk.rows is None else walk.rows[0]
        met = met[mask[met]][:_TOP_K]
        blind_times.append(time.thread_time() - started)
        assert found.work is not None
        ways[found.work.strategy.name.lower() + (" after a walk" if found.work.given_up else "")] += 1
        wanted += len(best)
        right += len(set(best) & set(found.rows))
        blind_right += len(set(best) & set(met))
    ms, blind_ms = np.median(times) * 1000, np.median(blind_times) * 1000
    line = (
        f"{share:9.2%} {direction:10}{ms:8.2f}{right / wanted:8.3f}  {', '.join(ways):36}"
        f"{blind_ms:9.2f}{blind_right / wanted:8.3f}"
    )
    return line, right / wanted


if __name__ == "__main__":
    sys.exit(main())
