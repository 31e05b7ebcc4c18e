"""How one collection grows: writing, building its graph, queries, memory, disk and opening, by its size.

In one process with keyvault's twin; each size in a process of its own, so that memory is its own too. Exits
with 1 where recall is below its floor, or a size could not be measured.

    python -m benchmarks.growth [--rows 1000,10000,100000] [--dimension 384]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.opening import fill
from benchmarks.residency import percentiles, rss_mib
from benchmarks.wire import vectors
from services.vectorstore.searching import Wanted
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node

_QUERIES = 300
_RECALL_LEAST = 0.95
_HEADER = (
    f"{'rows':>9} {'write+graph s':>14} {'query p50, p99 ms':>20} {'recall':>7} {'bytes/row':>10} "
    f"{'disk/row':>9} {'open s':>7}"
)


async def _measure(folder: Path, rows: int, dimension: int) -> tuple[str, float]:
    node = open_node(folder, FakeKeyvault())
    space = Space(node)
    await space.make(dimension=dimension)
    before = rss_mib()
    started = time.perf_counter()
    await fill(space, rows, dimension)
    filled = time.perf_counter() - started
    use = await space.use()
    snapshot = sum(path.stat().st_size for path in (folder / "objects").rglob("*") if path.is_file())
    await node.residency.drop(use.descriptor.id)
    started = time.perf_counter()
    use = await space.use()
    opened = time.perf_counter() - started
    held = use.collection.size_bytes
    times, right = [], 0
    everything = use.collection.state.index.every_vector
    lengths = np.linalg.norm(everything, axis=1)
    for query in vectors(_QUERIES, dimension, 2):
        started = time.perf_counter()
        answer = await node.finder.query(use, Wanted(query, 10, 0, None, with_vectors=False))
        times.append(time.perf_counter() - started)
        if len(times) <= _QUERIES // 10:
            nearest = np.argsort(-(everything @ query) / lengths)[:10]
            right += len({hit.point.id for hit in answer.hits} & {str(row) for row in nearest})
    median, late = percentiles(times)
    recall = right / (10 * (_QUERIES // 10))
    peak = rss_mib() - before
    await node.close()
    line = (
        f"{rows:9} {filled:14.1f} {median:10.2f}, {late:8.2f} {recall:7.3f} {held / rows:10.0f} "
        f"{snapshot / rows:9.0f} {opened:7.2f}   RSS +{peak:.0f} MiB"
    )
    return line, recall


def _one(rows: int, dimension: int) -> None:
    random.seed(1)
    with tempfile.TemporaryDirectory(prefix="sealcomb-growth-") as folder:
        line, recall = asyncio.run(_measure(Path(folder), rows, dimension))
    good = recall >= _RECALL_LEAST
    print(line + ("" if good else "   recall missed"), flush=True)
    sys.exit(not good)


def main() -> int:
    """Prints the table; 1 where a size missed its recall or ended early."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--rows", default="1000,10000,100000")
    parser.add_argument("--dimension", type=int, default=384)
    chosen = parser.parse_args()
    print(f"dimension {chosen.dimension}\n{_HEADER}", flush=True)
    context = multiprocessing.get_context("spawn")
    bad = 0
    for text in chosen.rows.split(","):
        process = context.Process(target=_one, args=(int(text), chosen.dimension))
        process.start()
        process.join()
        bad += process.exitcode != 0
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
