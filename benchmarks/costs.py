"""The constants by which the vectorstore chooses how to search, measured on this machine.

A query is answered by whichever way is expected to be cheapest (nearest.py, lexical.py, searching.py), so
the constants need only be right in proportion. CPU time of one thread counts, the least of several rounds, so
that a busy machine does not matter much. Prints each constant as it stands in the code and as it is here.

    python -m benchmarks.costs [--rows 30000]
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import numpy as np

from benchmarks.wire import vectors
from services.vectorstore import lexical, nearest, searching
from services.vectorstore.columns import Columns
from services.vectorstore.distances import best, nearness, nearness_of
from services.vectorstore.filters import OneOf, resolve
from services.vectorstore.index import Metric, VectorIndex, build_graph
from services.vectorstore.lexical import LexicalIndex, analyse

_ROUNDS = 7
_EF = 256


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds of one call, the least of several."""
    taken = []
    for _ in range(_ROUNDS):
        started = time.thread_time()
        work()
        taken.append((time.thread_time() - started) * 1000)
    return min(taken)


def with_graph(rows: int, dimension: int) -> tuple[VectorIndex, nearest.Vectors]:
    """An index with a graph over all of its rows, and queries."""
    index = VectorIndex(dimension, Metric.COSINE)
    index.publish(index.reserve(vectors(rows, dimension, 1)), rows)
    graph = build_graph(index.plan_graph(), threading.Event())
    assert graph is not None
    index.adopt_graph(graph)
    return index, vectors(20, dimension, 2)


def walk_costs(rows: int, dimension: int) -> tuple[float, nearest.Sight]:
    """Milliseconds of a step of a walk; the index that was walked."""
    index, queries = with_graph(rows, dimension)
    graph = index.graph
    assert graph is not None

    def walk() -> list[nearest.Walk]:
        return [graph.search(query[np.newaxis], 18, _EF) for query in queries]

    return cpu_ms(walk) / len(queries) / _EF, index.sight(index.live.copy())


def vector_costs(rows: int) -> dict[str, float]:
    """Numbers a millisecond of scans and gathers; milliseconds of a walk's steps and numbers."""
    short, _sight = walk_costs(rows, 64)
    long, sight = walk_costs(rows, 384)
    query = vectors(1, 384, 6)
    every, metric = sight.vectors, sight.metric
    some = np.flatnonzero(np.random.default_rng(4).random(rows) < 0.1)
    by_number = (long - short) / (384 - 64)
    return {
        "nearest._SCANNED_A_MS": rows
        * 384
        / cpu_ms(lambda: best(nearness(metric, query, every, sight.scale), 18)),
        "nearest._GATHERED_A_MS": len(some)
        * 384
        / cpu_ms(lambda: best(nearness_of(metric, query, every, sight.scale, some), 18)),
        "nearest._STEP_MS": max(short - 64 * by_number, 0.0),
        "nearest._STEP_NUMBER_MS": by_number,
    }


def word_costs(rows: int) -> dict[str, float]:
    """Milliseconds of a lexical search by row and by posting."""
    chance = np.random.default_rng(5)
    index = LexicalIndex()
    texts = [f"rare{n} " + "common " * int(chance.integers(1, 4)) for n in range(rows)]
    for _ in index.add(0, analyse(texts)):
        pass
    index.publish(0, rows)
    live = np.ones(rows, np.bool_)
    by_row = cpu_ms(lambda: index.search("rare7", 10, live)) / rows
    by_posting = cpu_ms(lambda: index.search("common", 10, live)) / rows - by_row
    return {"lexical._ROW_MS": by_row, "lexical._POSTING_MS": by_posting}


def filter_costs(rows: int) -> dict[str, float]:
    """Milliseconds of a condition by row."""
    columns = Columns()
    for row in range(rows):
        columns.add(row, {"tenth": (float(row % 10),)})
    live = np.ones(rows, np.bool_)
    return {"searching._CONDITION_MS": cpu_ms(lambda: resolve(OneOf("tenth", (3.0,)), columns, live)) / rows}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.costs", description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000)
    rows = parser.parse_args().rows
    measured = vector_costs(rows) | word_costs(rows) | filter_costs(rows)
    modules = {"nearest": nearest, "lexical": lexical, "searching": searching}
    print(f"{'constant':30}{'in the code':>14}{'here':>14}")
    for name, here in measured.items():
        module, constant = name.split(".")
        print(f"{name:30}{getattr(modules[module], constant):14.3g}{here:14.3g}")


if __name__ == "__main__":
    main()
