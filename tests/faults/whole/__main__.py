"""`make faults`: a whole installation under load with everything failing that can, as one table.

    python -m tests.faults.whole [--rounds 3] [--parts "services disk database objects"]

Root, in a network of its own (`unshare --net`), since rules of nft cut services off. Each row has an account
of its own, writers of documents and points, and a comparison of all that was acknowledged. Exits 1 where any
is lost or an answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.whole.row import Row
from tests.faults.whole.services import of_disk, of_services
from tests.faults.whole.stores import of_database, of_objects


def _of_stores(make: Callable[[Path, int], AsyncIterator[Row]], folder: Path, rounds: int) -> Iterator[Row]:
    with asyncio.Runner() as runner:
        rows = make(folder, rounds)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield runner.run(_next(rows))


async def _next(rows: AsyncIterator[Row]) -> Row:
    return await anext(rows)


PARTS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "services": of_services,
    "disk": of_disk,
    "database": partial(_of_stores, of_database),
    "objects": partial(_of_stores, of_objects),
}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--rounds", type=int, default=3, help="of each fault")
    parser.add_argument("--parts", default=" ".join(PARTS), help="of what: " + ", ".join(PARTS))
    chosen = parser.parse_args()
    names = f"{'times':>6} {'acked':>7} {'refused':>8} {'lost':>5} {'wrong':>5} {'recovery s':>10}"
    print(f"{'fault':22} {'where':14} {names}", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="sealcomb-faults-") as folder:
        for part in chosen.parts.split():
            own = Path(folder) / part
            own.mkdir()
            for row in PARTS[part](own, chosen.rounds):
                print(row, flush=True)
                for note in [*row.lost[:3], *row.wrong[:3]]:
                    print(f"    {note}", flush=True)
                bad += bool(row.lost or row.wrong or not row.acknowledged)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
