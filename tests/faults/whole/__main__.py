"""`make faults`: a whole installation under load with everything failing that can, as one table.

    python -m tests.faults.whole [--rounds 3]

Root, in a network of its own (`unshare --net`), since rules of nft cut services off. Each row has an account
of its own, writers of documents and points, and a comparison of all that was acknowledged. Exits 1 where any
is lost or an answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.faults.whole.database import of_database
from tests.faults.whole.row import Row
from tests.faults.whole.services import of_disk, of_services


def _rows(folder: Path, rounds: int) -> Iterator[Row]:
    for name, make in (("services", of_services), ("disk", of_disk)):
        own = folder / name
        own.mkdir()
        yield from make(own, rounds)

    async def database() -> list[Row]:
        return [row async for row in of_database(folder / "database", rounds)]

    (folder / "database").mkdir()
    yield from asyncio.run(database())


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--rounds", type=int, default=3, help="of each fault")
    rounds = parser.parse_args().rounds
    names = f"{'times':>6} {'acked':>7} {'refused':>8} {'lost':>5} {'wrong':>5} {'recovery s':>10}"
    print(f"{'fault':22} {'where':14} {names}", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="sealcomb-faults-") as folder:
        for row in _rows(Path(folder), rounds):
            print(row, flush=True)
            for note in [*row.lost[:3], *row.wrong[:3]]:
                print(f"    {note}", flush=True)
            bad += bool(row.lost or row.wrong or not row.acknowledged)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
