"""From a document's bytes to passages with vectors: sniff, extract, chunk, embed.

Nothing here is stored, so whatever fails or is cancelled leaves nothing behind. The vector of a
passage is that of the document's title, its nearest heading and its text together; the text that is
kept is the passage's own. This module must never log what passes through it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidArgument, invalid
from services.ingest.chunk import Chunk, PageText, iterate_chunks
from services.ingest.embed import Embedder
from services.ingest.embedders.pool import Priority
from services.ingest.extract.formats import DOCUMENT_EMPTY, PLAIN, Format, sniff
from services.ingest.extract.plain import extract_plain
from services.ingest.extract.wire import Extracted
from services.ingest.records import Passage

# Room in the model's window for the title and the heading that go before a passage.
_LEAD_TOKENS = 64
_HEADING_CHARS_MAX = 80
_TITLE_CHARS_MAX = 160
# Longer passages rank whole documents better, shorter ones point more exactly; the model's window
# may allow more.
_PASSAGE_TOKENS_MAX = 448
_OVERLAP_TOKENS = 32
_MAX_TOKENS_MIN = 2 * _OVERLAP_TOKENS + 2


class TextExtractor(Protocol):
    """Text out of one document, by a parser that is kept apart."""

    async def extract(self, form: Format, content: bytes) -> Extracted:
        """The pages of a document. Raises InvalidArgument where there are none to have."""


class EmbeddingQueue(Protocol):
    """Texts to vectors, queries before bulk."""

    async def embed(self, texts: Sequence[str], priority: Priority) -> npt.NDArray[np.float32]:
        """float32 [len(texts), dimension]."""


@dataclass(frozen=True, slots=True)
class Processed:
    """What became of a document."""

    form: Format
    pages: int
    passages: tuple[Passage, ...] = field(repr=False)


class Pipeline:
    """Runs documents through; how many at once is for the extractor and the embedding queue to say."""

    def __init__(
        self, extractor: TextExtractor, embedder: Embedder, queue: EmbeddingQueue, *, threads: int = 2
    ) -> None:
        self._extractor = extractor
        self._embedder = embedder
        self._queue = queue
        # A pool of its own, so that long documents do not hold up what is short and blocks.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="chunk")

    async def run(self, declared_type: str, name: str, content: bytes) -> Processed:
        """The passages of a document, at least one. Raises InvalidArgument for what cannot be taken in."""
        # It looks through all of the content.
        form = await asyncio.to_thread(sniff, declared_type, name, content)
        extracted = await self._extract(form, content)
        chunks = await self._chunk(extracted)
        if not chunks:
            raise _without_text()
        title = _title(extracted)
        vectors = await self._queue.embed([_embedded_text(title, chunk) for chunk in chunks], Priority.BULK)
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        passages = tuple(
            Passage(chunk.index, chunk.page, chunk.text.strip(), row.tobytes(), chunk.heading)
            for chunk, row in zip(chunks, rows, strict=True)
        )
        return Processed(form, max(page.number for page in extracted.pages), passages)

    async def _extract(self, form: Format, content: bytes) -> Extracted:
        if form not in PLAIN:
            return await self._extractor.extract(form, content)
        loop = asyncio.get_running_loop()
        markdown = form is Format.MARKDOWN
        extracted = await loop.run_in_executor(
            self._threads, functools.partial(extract_plain, content, markdown=markdown)
        )
        if not extracted.pages:
            raise _without_text()
        return extracted

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _chunk(self, extracted: Extracted) -> list[Chunk]:
        given_up = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._chunk_all, extracted, given_up.is_set)
        finally:
            # A thread cannot be cancelled; it looks at this between two passages.
            given_up.set()

    def _chunk_all(self, extracted: Extracted, given_up: Callable[[], bool]) -> list[Chunk]:
        chunks: list[Chunk] = []
        passages = iterate_chunks(
            [PageText(page.number, page.text) for page in extracted.pages],
            count_tokens=self._embedder.count_tokens,
            token_starts=self._embedder.token_starts,
            max_tokens=max(
                _MAX_TOKENS_MIN, min(_PASSAGE_TOKENS_MAX, self._embedder.max_tokens - _LEAD_TOKENS)
            ),
            overlap=_OVERLAP_TOKENS,
            form="markdown" if extracted.markdown else "text",
        )
        for passage in passages:
            if given_up():
                break
            chunks.append(passage)
        return chunks


def _without_text() -> InvalidArgument:
    return invalid("chunk", "the document has no text", reason=DOCUMENT_EMPTY)


def _title(extracted: Extracted) -> str:
    """The document's own title, else its first line if that is short enough to be one."""
    first = extracted.pages[0].text.lstrip().split("\n", 1)[0].lstrip("# ").strip()
    if not extracted.title and len(first) > _TITLE_CHARS_MAX:
        return ""
    return (extracted.title or first)[:_TITLE_CHARS_MAX]


def _embedded_text(title: str, chunk: Chunk) -> str:
    text = chunk.text.strip()
    leads = dict.fromkeys((title, chunk.heading[:_HEADING_CHARS_MAX]))
    return "\n".join([*(lead for lead in leads if lead and lead not in text), text])
