"""Points over the wire: writes and queries through the edge of a whole installation, from one machine.

Client, edge and services share the machine's cores, so the figures are those of a small
installation under its own load, not of any part alone. Recall is measured beside every speed.

    python -m benchmarks.wire [--points 20000] [--dimension 384] [--queries 500]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sealcomb.v1 import vector_service_pb2 as pb
from sealcomb_client import Client
from sealcomb_client.values import FilterLike, struct_of
from tests.system.installation import running

_BATCH = 100
_TOP_K = 10
_NAME = "bench"
_SHARE = {"in": {"field": "tenth", "values": [0]}}
_Vectors = npt.NDArray[np.float32]


def vectors(count: int, dimension: int, seed: int) -> _Vectors:
    """Clustered unit vectors: real embeddings lie in clusters, and uniform ones flatter nobody."""
    centres = np.random.default_rng(7).normal(size=(200, dimension))
    chance = np.random.default_rng(seed)
    rows = centres[chance.integers(0, len(centres), count)] + chance.normal(
        scale=0.6, size=(count, dimension)
    )
    unit: _Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def fill(client: Client, rows: _Vectors) -> float:
    """Writes all rows in batches of 100; returns vectors a second, each batch durable before the next."""
    client.collections.create(_NAME, dimension=rows.shape[1])
    started = time.perf_counter()
    for begin in range(0, len(rows), _BATCH):
        batch = [
            pb.Point(id=str(at), vector_f32=rows[at].tobytes(), metadata=struct_of({"tenth": at % 10}))
            for at in range(begin, min(begin + _BATCH, len(rows)))
        ]
        client.points.upsert(_NAME, batch)
    return len(rows) / (time.perf_counter() - started)


def measure(
    ask: Callable[[_Vectors], Sequence[pb.Hit]], probes: _Vectors, nearest: npt.NDArray[np.int64]
) -> tuple[float, float, float]:
    """Median and 99th percentile of one query's time in ms, and recall@10."""
    times, found = [], 0
    for probe, exact in zip(probes, nearest, strict=True):
        started = time.perf_counter()
        hits = ask(probe)
        times.append((time.perf_counter() - started) * 1000)
        found += len({hit.id for hit in hits} & {str(at) for at in exact})
    return float(np.median(times)), float(np.percentile(times, 99)), found / nearest.size


def main() -> None:
    """Starts an installation, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=500)
    arguments = parser.parse_args()
    rows = vectors(arguments.points, arguments.dimension, 1)
    probes = vectors(arguments.queries, arguments.dimension, 2)
    scores = probes @ rows.T
    nearest = np.argsort(-scores, axis=1)[:, :_TOP_K]
    tenth = np.arange(0, len(rows), 10)
    nearest_tenth = tenth[np.argsort(-scores[:, tenth], axis=1)[:, :_TOP_K]]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as installation:
        client = installation.new_account().client
        rate = fill(client, rows)
        print(f"upsert, batches of {_BATCH}: {rate:.0f} vectors/s, durable and sealed")
        print("waiting for the index to be built", file=sys.stderr)
        time.sleep(10)

        def ask(probe: _Vectors, condition: FilterLike = None) -> Sequence[pb.Hit]:
            return client.points.query(
                _NAME, probe.tobytes(), filter=condition, with_metadata=False, with_text=False
            )

        plain = measure(ask, probes, nearest)
        part = measure(lambda probe: ask(probe, _SHARE), probes, nearest_tenth)
    print(f"{'query':12}{'p50 ms':>9}{'p99 ms':>9}{'recall@10':>11}")
    for name, (middle, late, recall) in (("all", plain), ("10 % filter", part)):
        print(f"{name:12}{middle:9.2f}{late:9.2f}{recall:11.4f}")


if __name__ == "__main__":
    main()
