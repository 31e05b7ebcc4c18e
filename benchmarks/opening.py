"""Opening a collection from cold: its snapshot read, unsealed and parsed, its graph taken in.

In one process with keyvault's twin, so that what is timed is the opening itself; the files are in the page
cache. CPU time stands beside the wall's, which a busy machine makes many times as long, and what unsealing
alone takes beside both. A bound by `--bounds`.

    python -m benchmarks.opening [--rows 10000,100000] [--bounds 100,1000] [--dimension 384]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.wire import vectors
from services.vectorstore import editing
from services.vectorstore.index import build_graph
from services.vectorstore.operations import UpsertPoints
from services.vectorstore.parts import read_part
from services.vectorstore.upkeep import Keeper
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node, settle

_BATCH = 1000
_ROUNDS = 5


async def measure(folder: Path, rows: int, dimension: int) -> tuple[float, float, float]:
    """Milliseconds of an opening, of CPU time that it took, and of unsealing its snapshot: medians."""
    node = open_node(folder, FakeKeyvault())
    space = Space(node)
    await space.make(dimension=dimension)
    await fill(space, rows, dimension)
    opened, worked, unsealed = [], [], []
    for _ in range(_ROUNDS):
        use = await space.use()
        await node.residency.drop(use.descriptor.id)
        started, spent = time.perf_counter(), time.process_time()
        use = await space.use()
        opened.append((time.perf_counter() - started) * 1000)
        worked.append((time.process_time() - spent) * 1000)
        keeper: Keeper = use.collection.on_applied.__self__  # type: ignore[attr-defined]
        started = time.perf_counter()
        for part in keeper._layout.parts:
            read_part(node._objects, {use.key.id: use.key}, use.collection.scope, part)
        unsealed.append((time.perf_counter() - started) * 1000)
    await node.close()
    return statistics.median(opened), statistics.median(worked), statistics.median(unsealed)


async def fill(space: Space, rows: int, dimension: int) -> None:
    """Writes rows, builds their graph and a snapshot of both."""
    use, everything = await space.use(), vectors(rows, dimension, 1)
    for start in range(0, rows, _BATCH):
        ids = [str(place) for place in range(start, min(start + _BATCH, rows))]
        nothing = [b""] * len(ids)
        operation = UpsertPoints(ids, everything[start : start + len(ids)], nothing, [""] * len(ids))
        await editing.upsert(use, operation, [{}] * len(ids))
    await settle(use.collection)
    index = use.collection.state.index
    if index.graph is None or index.graph.until < rows:
        plan = index.plan_graph()
        graph = await asyncio.get_running_loop().run_in_executor(None, build_graph, plan, threading.Event())
        index.thaw()
        assert graph is not None
        index.adopt_graph(graph)
    keeper: Keeper = use.collection.on_applied.__self__  # type: ignore[attr-defined]
    keeper._graph_due = True
    await keeper.snapshot()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.opening", description=__doc__)
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--bounds", default="100,1000")
    parser.add_argument("--dimension", type=int, default=384)
    arguments = parser.parse_args()
    print(f"{'collection':>18}{'open ms':>10}{'CPU ms':>9}{'of it unsealing':>17}{'bound ms':>10}")
    missed = False
    for rows, bound in zip(arguments.rows.split(","), arguments.bounds.split(","), strict=True):
        with tempfile.TemporaryDirectory() as folder:
            opened, worked, unsealed = asyncio.run(measure(Path(folder), int(rows), arguments.dimension))
        verdict = "" if opened < float(bound) else "  missed"
        missed |= bool(verdict)
        name = f"{rows} x {arguments.dimension}"
        print(f"{name:>18}{opened:10.0f}{worked:9.0f}{unsealed:17.0f}{bound:>10}{verdict}", flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
