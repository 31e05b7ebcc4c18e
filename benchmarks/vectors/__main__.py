"""`make bench-vectors`: Sealcomb through its edge beside its open peers, on the same rows in one run.

Sealcomb runs as shipped: TLS, token, limits, every batch sealed and durable. The peers have none of that. The
contenders take turns within every round, since a busy machine makes later figures differ from earlier ones by
more than what is measured; medians of the rounds count. Recall stands beside every figure.

    python -m benchmarks.vectors [--rows 20000] [--dimension 384] [--rounds 5] [--only sealcomb,chroma]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vectors.contenders import Driver, cpu_s, resident_bytes
from benchmarks.vectors.driver import TENTHS, TOP_K
from benchmarks.vectors.report import Figures, report
from benchmarks.wire import vectors
from tests.system.installation import Installation, free_ports, running

NAMES = ("sealcomb", "chroma", "pgvector", "hnswlib", "faiss", "qdrant")
# Their clients are other processes; the rest are libraries.
_SERVERS = ("sealcomb", "chroma", "pgvector")
_BATCHED = ("sealcomb", "chroma", "hnswlib", "faiss")
_CLIENTS = 4
_BATCH = 32


@dataclass
class Running:
    """A contender with its clients."""

    name: str
    clients: list[Driver]
    pids: list[int]
    figures: Figures
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    found: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))


@dataclass(frozen=True)
class Truth:
    """The nearest rows of every query, among all and among a tenth."""

    every: np.ndarray[Any, np.dtype[np.int64]]
    tenth: np.ndarray[Any, np.dtype[np.int64]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.vectors", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=128, help="of each kind in each round")
    parser.add_argument("--only", default=",".join(NAMES))
    arguments = parser.parse_args()
    rows = vectors(arguments.rows, arguments.dimension, 1)
    queries = vectors(arguments.queries * arguments.rounds, arguments.dimension, 2)
    scores = queries @ rows.T
    every = np.argsort(-scores, axis=1)[:, :TOP_K]
    tenth = np.argsort(-scores[:, ::TENTHS], axis=1)[:, :TOP_K] * TENTHS
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        np.save(Path(folder) / "rows.npy", rows)
        np.save(Path(folder) / "queries.npy", queries)
        contenders = [
            one
            for name in arguments.only.split(",")
            if (one := _started(name, Path(folder), len(rows), stack)) is not None
        ]
        for number in range(arguments.rounds):
            # Each takes each place in turn, so that a drift during a round favours nobody.
            turn = number % len(contenders)
            for one in contenders[turn:] + contenders[:turn]:
                _round(one, number * arguments.queries, arguments.queries, Truth(every, tenth))
        for one in contenders:
            for name, values in one.samples.items():
                one.figures.values[name] = statistics.median(values)
                right, wanted = one.found[name]
                one.figures.recalls[name] = right / wanted if wanted else float("nan")
        missed = report({one.name: one.figures for one in contenders}, arguments)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def _started(name: str, folder: Path, rows: int, stack: ExitStack) -> Running | None:
    """A contender that is filled and has its clients; None, with the reason, if it does not run here."""
    print(f"filling {name}", file=sys.stderr)
    try:
        return _fill(name, folder, rows, stack)
    except Exception as error:  # a peer that fails must not end the others' run
        if name == "sealcomb":
            raise
        print(f"{name} did not run: {type(error).__name__}: {error}")
        return None


def _fill(name: str, folder: Path, rows: int, stack: ExitStack) -> Running:
    own = folder / name
    own.mkdir()
    for data in ("rows.npy", "queries.npy"):
        (own / data).symlink_to(folder / data)
    environ = {"BENCH_PORT": str(free_ports(1)[0])}
    installation: Installation | None = None
    if name == "sealcomb":
        home = own / "installation"
        home.mkdir()
        installation = stack.enter_context(running(home))
        account = installation.new_account().connection
        environ |= {
            "SEALCOMB_ENDPOINT": account.endpoint,
            "SEALCOMB_CA_FILE": str(account.ca_file),
            "SEALCOMB_TOKEN": account.token,
        }
    first = Driver(name, own, environ)
    stack.callback(first.close)
    server = installation.pid_of("vectorstore") if installation else (first.pids or [0])[0]
    before = resident_bytes(server) if server else 0
    pids = installation.pids() if installation else first.pids
    spent = cpu_s(pids)
    first.send(do="fill")
    filled = first.answer()
    pids = installation.pids() if installation else filled["pids"]
    held = filled["held_bytes"] or (resident_bytes(server) - before if server else float("nan"))
    figures = Figures(first.version)
    figures.values |= {
        "written": rows / filled["written_s"],
        "indexed": rows / filled["indexed_s"],
        "fill cpu": (cpu_s(pids) - spent) / rows * 1e6,
        "memory": held / rows,
    }
    clients = [first]
    if name in _SERVERS:
        for _ in range(_CLIENTS - 1):
            another = Driver(name, own, environ, first.endpoint or "attached")
            stack.callback(another.close)
            clients.append(another)
    return Running(name, clients, pids, figures)


def _round(one: Running, begin: int, count: int, truth: Truth) -> None:
    plain = {"do": "query", "begin": begin, "count": count, "filtered": False, "batch": 1, "threads": 1}
    spent = cpu_s(one.pids)
    _measure(one, "one client", one.clients[:1], plain, truth)
    one.samples["cpu ms"].append((cpu_s(one.pids) - spent) / count * 1000)
    _measure(one, "filtered", one.clients[:1], {**plain, "filtered": True}, truth)
    if one.name in _SERVERS:
        _measure(one, "four clients", one.clients, plain, truth)
    else:
        _measure(one, "four clients", one.clients, {**plain, "threads": _CLIENTS}, truth)
    if one.name in _BATCHED:
        _measure(one, "batches of 32", one.clients[:1], {**plain, "batch": _BATCH}, truth)


def _measure(one: Running, name: str, clients: list[Driver], command: dict[str, Any], truth: Truth) -> None:
    started = time.monotonic()
    for client in clients:
        client.send(**command)
    answers = [client.answer() for client in clients]
    # Several clients are timed from outside, the one client by itself.
    seconds = time.monotonic() - started if len(clients) > 1 else answers[0]["seconds"]
    one.samples[name].append(len(clients) * command["count"] / seconds)
    nearest = truth.tenth if command["filtered"] else truth.every
    for place, found in enumerate(answers[0]["found"], command["begin"]):
        one.found[name][0] += len(set(found) & set(nearest[place].tolist()))
        one.found[name][1] += TOP_K


if __name__ == "__main__":
    main()
