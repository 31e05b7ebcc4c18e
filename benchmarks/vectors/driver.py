"""What every contender of the vector benchmark does, driven over standard input by JSON lines.

Each runs in a process and an environment of its own, so this module uses numpy and the standard library
alone.
A contender must answer with the places of the rows that it found, never with less than it was asked for.
"""

from __future__ import annotations

import abc
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
TOP_K = 10
EF = 100
M = 16
EF_CONSTRUCTION = 100
BATCH = 100
# A row's metadata: its place modulo this, so that a filter for one value matches a tenth.
TENTHS = 10


class Contender(abc.ABC):
    """One engine or server, as a client sees it."""

    version = ""
    # Where further clients find it; empty for a library.
    endpoint = ""

    @abc.abstractmethod
    def fill(self, rows: Vectors) -> None:
        """Writes all rows in batches of 100, each durable where the contender is, and waits for its index."""

    @abc.abstractmethod
    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        """The nearest ten rows."""

    def written(self) -> float:
        """When, by the monotonic clock, the last write was acknowledged; 0: when `fill` returned."""
        return 0.0

    def held_bytes(self) -> int:
        """What all rows and their index take where the process's own memory does not show it; else 0."""
        return 0

    def pids(self) -> list[int]:
        """The processes that do the work."""
        return []

    @abc.abstractmethod
    def close(self) -> None:
        """Ends what was started."""


class Batcher(Contender):
    """A contender that takes several queries in one call."""

    @abc.abstractmethod
    def ask_many(self, queries: Vectors) -> list[list[int]]:
        """The nearest ten rows of each."""


def serve(make: Callable[[Path, str], Contender]) -> None:
    """Answers commands until the input ends. Arguments: folder of the data, endpoint (empty: start one)."""
    folder, endpoint = Path(sys.argv[-2]), sys.argv[-1].removeprefix("@")
    rows: Vectors = np.load(folder / "rows.npy")
    queries: Vectors = np.load(folder / "queries.npy")
    contender = make(folder, endpoint)
    say(
        {
            "version": contender.version,
            "pids": contender.pids(),
            "endpoint": getattr(contender, "endpoint", ""),
        }
    )
    try:
        for line in sys.stdin:
            command: dict[str, Any] = json.loads(line)
            if command["do"] == "fill":
                say(_fill(contender, rows))
            else:
                begin = command["begin"]
                say(_query(contender, queries[begin : begin + command["count"]], command))
    finally:
        contender.close()


def say(answer: dict[str, Any]) -> None:
    """One line of output."""
    print(json.dumps(answer), flush=True)


def _fill(contender: Contender, rows: Vectors) -> dict[str, Any]:
    started = time.monotonic()
    contender.fill(rows)
    ended = time.monotonic()
    written = contender.written() or ended
    return {
        "written_s": written - started,
        "indexed_s": ended - started,
        "pids": contender.pids(),
        "held_bytes": contender.held_bytes(),
    }


def _query(contender: Contender, queries: Vectors, command: dict[str, Any]) -> dict[str, Any]:
    filtered, batch, threads = command["filtered"], command["batch"], command["threads"]
    started = time.monotonic()
    if batch > 1:
        found: list[list[int]] = []
        for begin in range(0, len(queries), batch):
            assert isinstance(contender, Batcher)
            found += contender.ask_many(queries[begin : begin + batch])
    elif threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda query: contender.ask(query, filtered=filtered), queries))
    else:
        found = [contender.ask(query, filtered=filtered) for query in queries]
    return {"seconds": time.monotonic() - started, "found": found}


def batches(rows: Vectors) -> Sequence[range]:
    """The places of the rows of each batch."""
    return [range(at, min(at + BATCH, len(rows))) for at in range(0, len(rows), BATCH)]
