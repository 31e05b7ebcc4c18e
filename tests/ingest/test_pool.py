"""Queries go before bulk, everything is bounded, and the threads end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from services.common.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    SealcombError,
    Unavailable,
)
from services.ingest.embedders.pool import EmbeddingPool, Priority
from tests.ingest.hash_embedder import HashEmbedder


class GatedEmbedder(HashEmbedder):
    """Lets a text through when the test says so, and remembers the order."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.began: list[str] = []

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.began.extend(texts)
        assert self.gate.acquire(timeout=10)
        return super().embed(texts)


@pytest.fixture
async def gated() -> AsyncIterator[GatedEmbedder]:
    """An embedder whose gate is opened for good at the end, so that threads can be joined."""
    embedder = GatedEmbedder()
    yield embedder
    embedder.gate.release(1000)


async def until(*, embedder: GatedEmbedder, began: int) -> None:
    """Waits until `began` texts are or were on a thread."""
    async with asyncio.timeout(5):
        while len(embedder.began) < began:  # noqa: ASYNC110 - a thread changes it, not this loop
            await asyncio.sleep(0.002)


def texts_of(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("unit_texts", [1, 3, 100])
async def test_vectors_come_in_the_order_of_the_texts(priority: Priority, unit_texts: int) -> None:
    embedder = HashEmbedder()
    async with EmbeddingPool(embedder, workers=3, unit_texts=unit_texts) as pool:
        texts = texts_of("t", 50)
        calls = [pool.embed(texts[at:], priority) for at in range(5)]
        for at, vectors in enumerate(await asyncio.gather(*calls)):
            assert (vectors == embedder.embed(texts[at:])).all()


async def test_no_texts_give_no_rows_and_touch_no_thread() -> None:
    async with EmbeddingPool(HashEmbedder(), workers=1) as pool:
        assert (await pool.embed([], Priority.QUERY)).shape == (0, 64)


async def test_a_query_does_not_wait_for_bulk_even_when_every_worker_is_busy(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=1) as pool:
        bulk = asyncio.create_task(pool.embed(texts_of("bulk", 9), Priority.BULK))
        await until(embedder=gated, began=1)
        query = asyncio.create_task(pool.embed(["query"], Priority.QUERY))
        await until(embedder=gated, began=2)
        assert gated.began == ["bulk0", "query"]
        gated.gate.release(10)
        await asyncio.gather(bulk, query)


async def test_queries_that_wait_go_before_the_rest_of_a_bulk_call(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=1) as pool:
        bulk = asyncio.create_task(pool.embed(texts_of("bulk", 5), Priority.BULK))
        await until(embedder=gated, began=1)
        queries = [asyncio.create_task(pool.embed([f"query{at}"], Priority.QUERY)) for at in range(6)]
        await until(embedder=gated, began=2)
        gated.gate.release(11)
        await asyncio.gather(bulk, *queries)
        # Two threads at work: a bulk text may begin beside the last query, never before it.
        assert all(text.startswith("query") for text in gated.began[1:6])


async def test_bulk_alone_would_have_held_the_query_up(gated: GatedEmbedder) -> None:
    """The twin: sent as bulk, the same text waits for its turn."""
    async with EmbeddingPool(gated, workers=1) as pool:
        bulk = asyncio.create_task(pool.embed(texts_of("bulk", 3), Priority.BULK))
        await until(embedder=gated, began=1)
        late = asyncio.create_task(pool.embed(["late"], Priority.BULK))
        await asyncio.sleep(0.05)
        assert gated.began == ["bulk0"]
        gated.gate.release(4)
        await asyncio.gather(bulk, late)


async def test_a_small_bulk_call_takes_turns_with_a_large_one(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=1) as pool:
        large = asyncio.create_task(pool.embed(texts_of("large", 50), Priority.BULK))
        await until(embedder=gated, began=1)
        small = asyncio.create_task(pool.embed(texts_of("small", 2), Priority.BULK))
        await asyncio.sleep(0)
        gated.gate.release(10)
        await small
        assert gated.began.index("small1") < 8
        gated.gate.release(50)
        await large


async def test_too_many_waiting_queries_are_refused_with_a_time_to_come_back(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=1, queries_max=2) as pool:
        busy = [asyncio.create_task(pool.embed([f"busy{at}"], Priority.QUERY)) for at in range(2)]
        await until(embedder=gated, began=2)
        waiting = [asyncio.create_task(pool.embed(["waiting"], Priority.QUERY)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted) as caught:
            await pool.embed(["one more"], Priority.QUERY)
        assert caught.value.reason == "EMBEDDER_BUSY"
        assert caught.value.retry_after_s
        gated.gate.release(4)
        await asyncio.gather(*busy, *waiting)


async def test_bulk_calls_beyond_the_bound_wait_and_are_not_refused(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=3, bulk_calls_max=1) as pool:
        calls = [asyncio.create_task(pool.embed([f"call{at}"], Priority.BULK)) for at in range(3)]
        await until(embedder=gated, began=1)
        await asyncio.sleep(0.02)
        assert gated.began == ["call0"]
        gated.gate.release(3)
        await asyncio.gather(*calls)


async def test_a_call_with_too_many_texts_is_refused() -> None:
    async with EmbeddingPool(HashEmbedder(), workers=1, texts_per_call_max=2) as pool:
        with pytest.raises(InvalidArgument):
            await pool.embed(["a", "b", "c"], Priority.BULK)


async def test_a_late_call_leaves_the_queue(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=1) as pool:
        with pytest.raises(DeadlineExceeded):
            await pool.embed(texts_of("late", 5), Priority.BULK, timeout_s=0.05)
        gated.gate.release(1)
        next_call = asyncio.create_task(pool.embed(["next"], Priority.BULK))
        await until(embedder=gated, began=2)
        assert gated.began == ["late0", "next"]
        gated.gate.release(1)
        await next_call


async def test_a_cancelled_call_leaves_the_queue_and_frees_its_place(gated: GatedEmbedder) -> None:
    async with EmbeddingPool(gated, workers=1, bulk_calls_max=1) as pool:
        call = asyncio.create_task(pool.embed(texts_of("gone", 5), Priority.BULK))
        await until(embedder=gated, began=1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gated.gate.release(2)
        assert (await pool.embed(["next"], Priority.BULK)).shape == (1, 64)
        assert gated.began == ["gone0", "next"]


class FailingEmbedder(HashEmbedder):
    """Fails on the word bad."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if "bad" in texts:
            raise self.error
        return super().embed(texts)


async def test_a_typed_error_reaches_the_caller_and_the_threads_go_on() -> None:
    async with EmbeddingPool(FailingEmbedder(Unavailable("away")), workers=1) as pool:
        for _ in range(5):
            with pytest.raises(Unavailable, match="away"):
                await pool.embed(["good", "bad", "good"], Priority.BULK)
        assert (await pool.embed(["good"], Priority.BULK)).shape == (1, 64)


async def test_an_unknown_error_becomes_a_fixed_one_and_its_text_reaches_no_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with EmbeddingPool(FailingEmbedder(RuntimeError("canary")), workers=1) as pool:
        with pytest.raises(SealcombError, match="embedding failed") as caught:
            await pool.embed(["bad"], Priority.QUERY)
        assert "canary" not in f"{caught.value} {caught.value.__cause__!r}"
    out, err = capsys.readouterr()
    assert "canary" not in out + err
    assert "RuntimeError" in out + err


async def test_closing_refuses_what_waits_and_ends_the_threads(gated: GatedEmbedder) -> None:
    pool = EmbeddingPool(gated, workers=1)
    call = asyncio.create_task(pool.embed(texts_of("bulk", 5), Priority.BULK))
    await until(embedder=gated, began=1)
    closing = asyncio.create_task(pool.close())
    with pytest.raises(Unavailable):
        await call
    gated.gate.release(1)
    await closing
    await pool.close()
    assert not [thread for thread in pool._threads if thread.is_alive()]
    assert gated.began == ["bulk0"]
    with pytest.raises(Unavailable) as caught:
        await pool.embed(["after"], Priority.QUERY)
    assert caught.value.reason == "EMBEDDER_CLOSED"
