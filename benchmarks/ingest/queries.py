"""How long a query waits while documents are taken in, and while none are."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.ingest.texts import Texts
from sealcomb_client import Client
from services.ingest.embed import Embedder
from services.ingest.embedders.pool import EmbeddingPool, Priority

_QUERY = "how is a leaked key found and revoked ({})"
_PAUSE_S = 0.02
_BULK_DOCUMENTS = 16


@dataclass(frozen=True, slots=True)
class Waits:
    """What queries waited."""

    p50_ms: float
    p99_ms: float


def waits_of(times_s: Sequence[float]) -> Waits:
    """The percentiles of some times."""
    return Waits(float(np.percentile(times_s, 50)) * 1000, float(np.percentile(times_s, 99)) * 1000)


async def queue_waits(embedder: Embedder, texts: Texts, count: int) -> tuple[Waits, Waits]:
    """Embedding one query through the queue: without and with bulk work, by turns in one run."""
    async with EmbeddingPool(embedder, workers=len(os.sched_getaffinity(0))) as pool:
        passages = [text.decode()[:1600] for text in texts.take(100)]
        quiet: list[float] = []
        busy: list[float] = []
        for _ in range(4):
            quiet += await _timed(pool, count // 4)
            bulk = asyncio.create_task(_endless(pool, passages))
            await asyncio.sleep(0.2)
            busy += await _timed(pool, count // 4)
            bulk.cancel()
            await asyncio.gather(bulk, return_exceptions=True)
    return waits_of(quiet), waits_of(busy)


async def _timed(pool: EmbeddingPool, count: int) -> list[float]:
    times = []
    for number in range(count):
        started = time.perf_counter()
        await pool.embed([_QUERY.format(number)], Priority.QUERY)
        times.append(time.perf_counter() - started)
        await asyncio.sleep(_PAUSE_S)
    return times


async def _endless(pool: EmbeddingPool, passages: Sequence[str]) -> None:
    while True:
        await pool.embed(passages, Priority.BULK)


def search_waits(
    client: Client,
    collection: str,
    texts: Texts,
    count: int,
    upload: Callable[[Client, Sequence[bytes]], object],
) -> tuple[Waits, Waits]:
    """The same for whole searches through the edge, against uploads through the edge."""
    quiet: list[float] = []
    busy: list[float] = []
    for _ in range(2):
        quiet += _searches(client, collection, count // 2)
        ended = threading.Event()
        uploads = threading.Thread(target=_uploads, args=(client, texts, upload, ended))
        uploads.start()
        time.sleep(0.5)
        busy += _searches(client, collection, count // 2)
        ended.set()
        uploads.join()
    return waits_of(quiet), waits_of(busy)


def _searches(client: Client, collection: str, count: int) -> list[float]:
    times = []
    for number in range(count):
        started = time.perf_counter()
        client.search(collection, _QUERY.format(number), top_k=5, mode="dense")
        times.append(time.perf_counter() - started)
        time.sleep(_PAUSE_S)
    return times


def _uploads(
    client: Client,
    texts: Texts,
    upload: Callable[[Client, Sequence[bytes]], object],
    ended: threading.Event,
) -> None:
    while not ended.is_set():
        upload(client, texts.take(_BULK_DOCUMENTS))
