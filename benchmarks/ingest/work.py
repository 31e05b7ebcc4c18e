"""The parts of the work, each alone in this process, and the processor time that each takes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.common import ids
from services.common.sealing import DataKey, Identity, Sealer, seal
from services.ingest.embed import Embedder
from services.ingest.embedders.pool import EmbeddingPool, Priority
from services.ingest.extract.formats import Format
from services.ingest.extract.wire import Extracted
from services.ingest.pipeline import Pipeline


class Recorder:
    """Stands in the place of the embedding queue and keeps the texts that it is asked for."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str], priority: Priority) -> npt.NDArray[np.float32]:
        """Zeros, at no cost."""
        self.texts += texts
        return np.zeros((len(texts), self._dimension), dtype=np.float32)


class NoExtractor:
    """Text needs no parser."""

    async def extract(self, form: Format, content: bytes) -> Extracted:
        """Is not asked."""
        raise AssertionError("text was sent to a parser")


async def measured(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Processor seconds of this process, and seconds that passed."""
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return time.process_time() - cpu, time.perf_counter() - wall


async def cut(embedder: Embedder, documents: Sequence[bytes]) -> tuple[list[str], float]:
    """The texts that are embedded of these documents, and the processor time of cutting them."""
    recorder = Recorder(embedder.dimension)
    pipeline = Pipeline(NoExtractor(), embedder, recorder)

    async def all_of_them() -> None:
        for document in documents:
            await pipeline.run("text/plain", "a.txt", document)

    try:
        cpu_s, _wall_s = await measured(all_of_them)
    finally:
        pipeline.close()
    return recorder.texts, cpu_s


async def embed(pool: EmbeddingPool, texts: Sequence[str]) -> tuple[float, float]:
    """Processor time and time of embedding alone, on all cores as the service does it."""
    return await measured(lambda: pool.embed(texts, Priority.BULK))


async def seal_originals(documents: Sequence[bytes], folder: Path) -> float:
    """Processor time of sealing originals and their passages, and of the files."""
    key = DataKey(ids.new_id(), bytes(32))
    account, collection = ids.new_id(), ids.new_id()

    async def all_of_them() -> None:
        for document in documents:
            identity = Identity(account, collection, "original", ids.new_id())
            sealer = Sealer(key, identity)
            sealed = sealer.update(document) + sealer.finalize()
            (folder / ids.new_id()).write_bytes(sealed)
            seal(key, identity, document)

    cpu_s, _wall_s = await measured(all_of_them)
    return cpu_s
