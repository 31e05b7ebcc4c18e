"""Putting the best hits in order anew by a model that reads query and passage together.

Such a cross-encoder sees what two separate vectors cannot, and costs a run of a model for each
passage, so it is off unless the operator names one and only the first hits go through it. Queries and
passages must never be logged, kept or put into an error.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from services.common.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, SealcombError
from services.ingest.embedders.local import OnnxCrossEncoder
from services.ingest.embedders.pool import step_back

CANDIDATES = 50
RERANKER_OFF = "RERANKER_OFF"
_RETRY_AFTER_S = 1.0

_log = structlog.get_logger("search")


class PairScorer(Protocol):
    """One model. Safe to use from several threads at once; it leaves the GIL."""

    def score(self, query: str, passage: str) -> float:
        """How well the passage answers the query, 0 to 1. Raises FailedPrecondition for a broken model."""


def open_scorer(spec: str) -> PairScorer | None:
    """The model a setting names: `onnx:FOLDER`, or none. ValueError when the spec means nothing."""
    if not spec:
        return None
    kind, _, folder = spec.partition(":")
    if kind != "onnx" or not folder:
        raise ValueError("a reranker is onnx:FOLDER")
    return OnnxCrossEncoder(Path(folder))


class Reranker:
    """Scores passages on a few threads; so many searches at once, so long."""

    def __init__(
        self,
        scorer: PairScorer | None,
        *,
        threads: int = 0,
        searches_max: int = 8,
        timeout_s: float = 10.0,
    ) -> None:
        self._scorer = scorer
        self._searches_max = searches_max
        self._timeout_s = timeout_s
        self._searches = 0
        self._threads = ThreadPoolExecutor(
            threads or len(os.sched_getaffinity(0)),
            thread_name_prefix="rerank",
            # A search that asks for it waits for long anyway; others must not wait for it.
            initializer=step_back,
        )

    def check(self) -> None:
        """Raises FailedPrecondition where the operator has named no model."""
        if self._scorer is None:
            raise FailedPrecondition(
                "this installation has no reranker; search without it", reason=RERANKER_OFF
            )

    async def scores(self, query: str, passages: Sequence[str]) -> npt.NDArray[np.float64]:
        """A score for each passage. Raises ResourceExhausted, DeadlineExceeded, FailedPrecondition."""
        self.check()
        if self._searches >= self._searches_max:
            raise ResourceExhausted(
                "too many searches are reranked; try again shortly",
                reason="RERANKER_BUSY",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._searches += 1
        loop = asyncio.get_running_loop()
        # One by one, so that those of a search that was given up leave the queue.
        waiting = [loop.run_in_executor(self._threads, self._score, query, text) for text in passages]
        try:
            async with asyncio.timeout(self._timeout_s):
                return np.asarray(await asyncio.gather(*waiting), dtype=np.float64)
        except TimeoutError:
            raise DeadlineExceeded("reranking took too long; ask for fewer hits or without it") from None
        finally:
            self._searches -= 1
            for scored in waiting:
                scored.cancel()

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _score(self, query: str, passage: str) -> float:
        # `check` came before.
        assert self._scorer is not None  # noqa: S101
        try:
            return self._scorer.score(query, passage)
        except SealcombError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises may quote what it was given
            _log.error("reranking_failed", exception_type=type(error).__name__)
            raise SealcombError("reranking failed; tell the operator") from None
