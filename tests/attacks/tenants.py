"""F11: many accounts with near-identical data on one node, asked while they are written, deleted and closed.

    python -m tests.attacks.tenants [--queries 1000000]

Every account has the same collection name, the same vectors but for a hair, and ids that say whose they
are. Prints how many queries were asked, how many ids were found and how many of them were another account's;
with the twin, in which all accounts share one index. Exits 1 where any is foreign, or the twin sees none.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from services.common.errors import Unavailable
from services.vectorstore.node import Limits
from services.vectorstore.searching import Wanted
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node

ACCOUNTS = 50
_POINTS = 40
_DIMENSION = 8
_QUERIES_A_TURN = 100
# Memory for a few of them, so that they are closed and opened all the time.
_MEMORY_BYTES = 300_000


@dataclass
class Seen:
    """What the queries found."""

    queries: int = 0
    ids: int = 0
    foreign: int = 0


async def ask(folder: Path, queries: int, *, shared: bool = False, accounts: int = ACCOUNTS) -> Seen:
    """Asks so often, over all accounts."""
    node = open_node(folder, FakeKeyvault(), replace(Limits(), resident_bytes_max=_MEMORY_BYTES))
    seen = Seen()
    turns = -(-queries // (accounts * _QUERIES_A_TURN))
    names = [f"{number:026d}" for number in range(accounts)]
    for place, name in enumerate(names):
        if not shared or place == 0:
            await Space(node, name).make(dimension=_DIMENSION)

    async def live(name: str) -> None:
        chance = random.Random(name)
        # The twin: everybody's is the first account's.
        space = Space(node, names[0] if shared else name)
        vectors = {f"{name}-{number}": _vector(number, 0.0).tolist() for number in range(_POINTS)}
        await _served(partial(_write, space, vectors))
        for turn in range(turns):
            await _served(partial(_churn, space, name, turn, chance))
            await _served(partial(_turn, space, name, chance, seen))
            if chance.random() < 0.2:
                node.residency.drop_account(space.account)

    await asyncio.gather(*map(live, names))
    await node.close()
    return seen


async def _served(work: Callable[[], Awaitable[None]]) -> None:
    """Does it again where the collection was closed meanwhile, as a caller is told to."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            await asyncio.sleep(error.retry_after_s or 0.1)


async def _churn(space: Space, name: str, turn: int, chance: random.Random) -> None:
    numbers = chance.sample(range(_POINTS), 5)
    vectors = {f"{name}-{number}": _vector(number, chance.random()) for number in numbers}
    await space.upsert({id_: vector.tolist() for id_, vector in vectors.items()})
    if turn % 3 == 2:
        await space.delete(f"{name}-{numbers[0]}")


async def _write(space: Space, vectors: dict[str, list[float]]) -> None:
    await space.upsert(vectors)


async def _turn(space: Space, name: str, chance: random.Random, seen: Seen) -> None:
    use = await space.use()
    for _ in range(_QUERIES_A_TURN):
        wanted = Wanted(_vector(chance.randrange(_POINTS), chance.random()), 10, 0, None, with_vectors=False)
        answer = await space.node.finder.query(use, wanted)
        seen.queries += 1
        seen.ids += len(answer.hits)
        seen.foreign += sum(not hit.point.id.startswith(name) for hit in answer.hits)
        if not seen.queries % 20:
            await asyncio.sleep(0)


def _vector(number: int, hair: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    vector = np.ones(_DIMENSION, np.float32)
    vector[number % _DIMENSION] += number / 100 + hair / 1e6
    return vector


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="make attack-tenants")
    parser.add_argument("--queries", type=int, default=1_000_000)
    wanted = parser.parse_args().queries
    print(f"{'':26} {'queries':>9} {'ids found':>10} {'foreign':>9} {'s':>6}")
    foreign = []
    for what, queries, shared in (
        ("an index each", wanted, False),
        ("twin: one index for all", 10_000, True),
    ):
        with tempfile.TemporaryDirectory(prefix="sealcomb-tenants-") as folder:
            started = time.monotonic()
            seen = asyncio.run(ask(Path(folder), queries, shared=shared))
            took = time.monotonic() - started
        print(f"{what:26} {seen.queries:9} {seen.ids:10} {seen.foreign:9} {took:6.0f}", flush=True)
        foreign.append(seen.foreign)
    return int(foreign[0] > 0 or not foreign[1])


if __name__ == "__main__":
    sys.exit(main())
