"""`make bench-ingest`: what the whole path of a document costs against its embedding alone.

Rounds alternate: the passages of some documents are embedded in this process, on as many threads as the
service has, then documents of the same kind are uploaded through the edge of a whole installation. The
ratio is the processor time of all its processes against that of the embedding. Then searches are timed
with and without uploads going on. Ends with 1 when a bound is missed.

    python -m benchmarks.ingest [--folder BEIR_FOLDER] [--documents 120] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.ingest import processes, work
from benchmarks.ingest.queries import Waits, queue_waits, search_waits
from benchmarks.ingest.texts import Texts
from sealcomb_client import Client
from services.ingest.embed import Embedder, open_embedder
from services.ingest.embedders.pool import EmbeddingPool
from services.standalone.config import StandaloneSettings
from tests.system.installation import Installation, running

RATIO_MAX = 1.15
DELAY_MS_MAX = 50.0
_COLLECTION = "bench"
_SENDERS = 4


def upload(client: Client, documents: Sequence[bytes], content_type: str = "text/plain") -> tuple[float, int]:
    """Seconds until the last of the documents can be searched, and how many passages they gave."""

    def send(document: bytes) -> int:
        made = client.documents.upload(_COLLECTION, document, name="a", content_type=content_type)
        return made.passages

    started = time.perf_counter()
    with ThreadPoolExecutor(_SENDERS) as pool:
        passages = sum(pool.map(send, documents))
    return time.perf_counter() - started, passages


async def rounds(
    installation: Installation, client: Client, embedder: Embedder, texts: Texts, size: int, count: int
) -> list[float]:
    """Runs the rounds and prints each; the ratios."""
    ratios = []
    sums: dict[str, float] = {}
    async with EmbeddingPool(embedder, workers=len(os.sched_getaffinity(0))) as pool:
        for number in range(1, count + 1):
            documents = texts.take(size)
            passages, cut_s = await work.cut(embedder, documents)
            embed_s, embed_wall_s = await work.embed(pool, passages)
            with tempfile.TemporaryDirectory() as folder:
                seal_s = await work.seal_originals(documents, Path(folder))
            before = processes.spent(installation)
            wall_s, found = await asyncio.to_thread(upload, client, documents)
            spent = processes.difference(before, processes.spent(installation))
            total_s = sum(spent.values())
            ratios.append(total_s / embed_s)
            print(
                f"round {number}: {size / wall_s:.1f} documents/s, {found / wall_s:.1f} passages/s "
                f"(embedding alone {len(passages) / embed_wall_s:.1f}), processor time {total_s:.2f} s "
                f"against {embed_s:.2f} s: ratio {ratios[-1]:.3f}",
                flush=True,
            )
            parts = {"embedding alone": embed_s, "cutting alone": cut_s, "sealing alone": seal_s}
            for name, value in {**spent, **parts, "all": total_s}.items():
                sums[name] = sums.get(name, 0.0) + value
    print(f"\n{'part':22}{'share of all':>13}")
    for name, value in sorted(sums.items(), key=lambda item: -item[1]):
        print(f"{name:22}{value / sums['all']:13.1%}")
    return ratios


def parsed(installation: Installation, client: Client, texts: Texts, size: int) -> None:
    """The same for a format that a child process reads."""
    pages = [
        b"<html><body><p>" + text.replace(b"\n\n", b"<p>") + b"</body></html>" for text in texts.take(size)
    ]
    before = processes.spent(installation)
    wall_s, _passages = upload(client, pages, "text/html")
    spent = processes.difference(before, processes.spent(installation))
    share = spent.get(processes.EXTRACTION, 0.0)
    print(
        f"\nHTML, a sandboxed child for each: {size / wall_s:.1f} documents/s, "
        f"extraction {share / size * 1000:.0f} ms of processor time each, "
        f"{share / sum(spent.values()):.0%} of all"
    )


def report(name: str, quiet: Waits, busy: Waits) -> float:
    """One line of the table; by how much the 99th percentile is later under load."""
    delay = busy.p99_ms - quiet.p99_ms
    print(
        f"{name:34}{quiet.p50_ms:8.1f}{quiet.p99_ms:8.1f}{busy.p50_ms:8.1f}{busy.p99_ms:8.1f}{delay:10.1f}"
        f"{busy.p99_ms / quiet.p99_ms:7.1f}"
    )
    return delay


def main() -> int:
    """Starts an installation, measures, prints the tables; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--documents", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--searches", type=int, default=300)
    arguments = parser.parse_args()
    texts = Texts(arguments.folder)
    load = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    print(f"{len(os.sched_getaffinity(0))} cores, load before {load}", flush=True)
    embedder = open_embedder(f"onnx:{StandaloneSettings().model_dir}")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as installation:
        client = installation.new_account().client
        client.collections.create(_COLLECTION, embedder="default")
        upload(client, texts.take(8))
        run = rounds(installation, client, embedder, texts, arguments.documents, arguments.rounds)
        ratios = asyncio.run(run)
        parsed(installation, client, texts, arguments.documents // 3)
        header = ("p50 ms", "p99 ms", "p50 ms", "p99 ms", "later by", "ratio")
        print(f"\n{'':34}{'without bulk':^16}{'with bulk':^16}")
        print(
            f"{'a query':34}"
            + "".join(f"{text:>{w}}" for text, w in zip(header, (8, 8, 8, 8, 10, 7), strict=True))
        )
        delay = report(
            "embedded, by the queue alone", *asyncio.run(queue_waits(embedder, texts, arguments.searches))
        )
        report(
            "searched through the edge", *search_waits(client, _COLLECTION, texts, arguments.searches, upload)
        )
    ratio = statistics.median(ratios)
    print(f"\nratio of all processor time to embedding alone: {ratio:.3f} (bound {RATIO_MAX})")
    print(f"a query's embedding under bulk is later by {delay:.1f} ms at p99 (bound {DELAY_MS_MAX:.0f})")
    return 0 if ratio <= RATIO_MAX and delay <= DELAY_MS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
