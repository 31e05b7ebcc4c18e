"""Many accounts on one node with memory for few: queries cold and warm, memory, who waits for an opening.

In one process with keyvault's twin, so that what is timed is the vectorstore itself. Each account has one
collection. Queries go to accounts at random; nearly all find theirs closed. Then one large collection is
opened while the event loop's turns, and queries of another collection, are timed.

    python -m benchmarks.residency [--accounts 10,100,1000] [--memory-for 500] [--rows 100] [--large 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.opening import fill
from benchmarks.wire import vectors
from services.vectorstore import editing
from services.vectorstore.node import Limits, Node
from services.vectorstore.operations import UpsertPoints
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node

_DIMENSION = 384
_QUERIES = 2_000
_AT_ONCE = 16
_TICK_S = 0.001


def rss_mib() -> float:
    """Memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) / 1024


def percentiles(times_s: list[float]) -> tuple[float, float]:
    """Milliseconds: the median, and what 99 % stay below."""
    ordered = sorted(times_s)
    return ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000


def _space(node: Node, number: int) -> Space:
    return Space(node, f"{number:026d}")


async def _make(node: Node, numbers: range, rows: int) -> None:
    """An account each, some at once, so that they share commits."""
    everything = vectors(rows * 4, _DIMENSION, 1)
    waiting = iter(numbers)

    async def one_after_another() -> None:
        for number in waiting:
            space = _space(node, number)
            await space.make(dimension=_DIMENSION)
            use = await space.use()
            taken = everything[number % (3 * rows) :][:rows]
            ids = [str(place) for place in range(rows)]
            operation = UpsertPoints(ids, taken, [b""] * rows, [""] * rows)
            await editing.upsert(use, operation, [{}] * rows)

    await asyncio.gather(*(one_after_another() for _ in range(_AT_ONCE)))


async def _ask(node: Node, number: int, query: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    started = time.perf_counter()
    found = await _space(node, number).nearest(query.tolist(), 10)
    assert len(found) == 10
    return time.perf_counter() - started


async def many(folder: Path, counts: list[int], memory_for: int, rows: int) -> None:
    """The table of accounts."""
    probe = open_node(folder / "probe", FakeKeyvault())
    await _make(probe, range(1), rows)
    one = (await _space(probe, 0).use()).collection.size_bytes
    await probe.close()
    limits = replace(Limits(), resident_bytes_max=one * memory_for)
    node = open_node(folder / "many", FakeKeyvault(), limits)
    queries = vectors(64, _DIMENSION, 2)
    chance = random.Random(1)
    print(f"{rows} x {_DIMENSION} vectors each, memory for {memory_for} ({one * memory_for / 2**20:.0f} MiB)")
    print(
        f"{'accounts':>9} {'open':>5} {'cold p50, p99 ms':>18} {'warm p50, p99 ms':>18} "
        f"{'RSS MiB':>8} {'disk MiB':>9}"
    )
    made, opened = 0, dict[int, str]()
    for count in counts:
        await _make(node, range(made, count), rows)
        made = count
        # All closed, as after a restart.
        node.residency.drop_all()
        cold, warm = [], []
        for turn in range(_QUERIES):
            number = chance.randrange(count)
            was_open = number in opened and node.residency.peek(opened[number]) is not None
            took = await _ask(node, number, queries[turn % 64])
            (warm if was_open else cold).append(took)
            if not was_open:
                opened[number] = (await _space(node, number).use()).descriptor.id
                warm.append(await _ask(node, number, queries[turn % 64]))
        disk = sum(path.stat().st_size for path in (folder / "many").rglob("*") if path.is_file()) / 2**20
        figures = [f"{a:8.2f}, {b:8.2f}" for a, b in (percentiles(cold or [0.0]), percentiles(warm))]
        print(
            f"{count:9} {node.residency.count:5} {figures[0]} {figures[1]} {rss_mib():8.0f} {disk:9.0f}",
            flush=True,
        )
    await node.close()


async def stall(folder: Path, rows: int) -> None:
    """How long others wait while a large collection is opened."""
    node = open_node(folder / "stall", FakeKeyvault())
    await _make(node, range(1), 100)
    large = _space(node, 1)
    await large.make(dimension=_DIMENSION)
    await fill(large, rows, _DIMENSION)
    await node.residency.drop((await large.use()).descriptor.id)
    query = vectors(1, _DIMENSION, 2)[0]
    quiet = await _watched(node, query, asyncio.sleep(2.0))
    started = time.perf_counter()
    busy = await _watched(node, query, large.use())
    took = time.perf_counter() - started
    print(f"\nopening {rows} x {_DIMENSION} took {took:.2f} s")
    print(f"{'':24} {'longest turn ms':>16} {'query p50, p99 ms':>20}")
    for what, (turn, (median, late)) in (("nothing else", quiet), ("while it is opened", busy)):
        print(f"{what:24} {turn * 1000:16.1f} {median:10.2f}, {late:8.2f}", flush=True)
    await node.close()


async def _watched(
    node: Node, query: np.ndarray[tuple[int, ...], np.dtype[np.float32]], work: object
) -> tuple[float, tuple[float, float]]:
    """The longest turn of the event loop, and queries of a small collection, while something is done."""
    longest, asked, done = 0.0, [0.0], asyncio.Event()

    async def ticks() -> None:
        nonlocal longest
        while not done.is_set():
            before = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            longest = max(longest, time.perf_counter() - before - _TICK_S)

    async def queries() -> None:
        while not done.is_set():
            asked.append(await _ask(node, 0, query))

    others = [asyncio.create_task(ticks()), asyncio.create_task(queries())]
    await work  # type: ignore[misc]
    done.set()
    await asyncio.gather(*others)
    return longest, percentiles(asked[1:])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.residency")
    parser.add_argument("--accounts", default="10,100,1000,10000")
    parser.add_argument("--memory-for", type=int, default=500)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--large", type=int, default=100_000)
    chosen = parser.parse_args()
    counts = [int(text) for text in chosen.accounts.split(",")]
    with tempfile.TemporaryDirectory(prefix="sealcomb-residency-") as folder:
        for name in ("probe", "many", "stall"):
            (Path(folder) / name).mkdir()
        asyncio.run(many(Path(folder), counts, chosen.memory_for, chosen.rows))
        if chosen.large:
            asyncio.run(stall(Path(folder), chosen.large))


if __name__ == "__main__":
    main()
