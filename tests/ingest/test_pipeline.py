"""From bytes to passages: what is embedded, what is kept, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from services.common.errors import InvalidArgument
from services.ingest.embedders.pool import Priority
from services.ingest.extract.formats import Format
from services.ingest.extract.wire import Extracted, ExtractedPage, Outcome
from services.ingest.pipeline import Pipeline
from tests.ingest.hash_embedder import HashEmbedder


@dataclass
class FakeExtractor:
    """Answers what the test says, and remembers what came."""

    answer: Extracted
    asked: list[Format] = field(default_factory=list)

    async def extract(self, form: Format, content: bytes) -> Extracted:
        """The answer."""
        self.asked.append(form)
        return self.answer


@dataclass
class FakeQueue:
    """Embeds at once, and remembers the texts and their priority."""

    embedder: HashEmbedder
    texts: list[str] = field(default_factory=list)
    priorities: set[Priority] = field(default_factory=set)

    async def embed(self, texts: Sequence[str], priority: Priority) -> npt.NDArray[np.float32]:
        """The embedder's vectors."""
        self.texts += texts
        self.priorities.add(priority)
        return self.embedder.embed(texts)


@dataclass
class Bench:
    """A pipeline between fakes."""

    extractor: FakeExtractor
    queue: FakeQueue
    pipeline: Pipeline


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A pipeline whose extractor finds two pages, the first of them blank."""
    pages = (ExtractedPage(1, "# Wax\n\nThe cap seals the cell."), ExtractedPage(3, "Bees gather nectar."))
    extractor = FakeExtractor(Extracted(Outcome.TEXT, True, "Title", pages))
    embedder = HashEmbedder()
    queue = FakeQueue(embedder)
    pipeline = Pipeline(extractor, embedder, queue)
    yield Bench(extractor, queue, pipeline)
    pipeline.close()


async def test_passages_keep_page_and_text_and_are_embedded_with_title_and_heading(bench: Bench) -> None:
    made = await bench.pipeline.run("application/pdf", "a.pdf", b"%PDF-1.7")
    assert (made.form, made.pages) == (Format.PDF, 3)
    assert [(passage.index, passage.page) for passage in made.passages] == [(0, 1), (1, 3)]
    assert made.passages[1].text == "Bees gather nectar."
    # The heading of the first page stands above the second one's text and says what it is about.
    texts = ["Title\n" + made.passages[0].text, "Title\nWax\nBees gather nectar."]
    assert bench.queue.texts == texts
    assert bench.queue.priorities == {Priority.BULK}
    expected = bench.queue.embedder.embed([texts[1]])[0]
    assert np.array_equal(np.frombuffer(made.passages[1].vector, "<f4"), expected)


async def test_plain_text_needs_no_child_and_everything_else_does(bench: Bench) -> None:
    assert (await bench.pipeline.run("", "a.txt", b"some words")).pages == 0
    assert (await bench.pipeline.run("", "a.md", b"# Head\n\nwords")).form is Format.MARKDOWN
    assert bench.extractor.asked == []
    await bench.pipeline.run("", "a.html", b"<p>words")
    assert bench.extractor.asked == [Format.HTML]


@pytest.mark.parametrize("content", [b" \n\t ", b"\x0b", "\ufeff".encode(), b"\xff\xfe"])
async def test_white_space_is_an_empty_document(bench: Bench, content: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await bench.pipeline.run("text/plain", "a.txt", content)
    assert caught.value.reason == "DOCUMENT_EMPTY"


async def test_a_first_line_stands_for_a_title_only_if_it_is_short(bench: Bench) -> None:
    lines = [f"line {number} of many words about wax and honey" for number in range(400)]
    await bench.pipeline.run("", "a.txt", "\n".join(["On sealing", *lines]).encode())
    assert len(bench.queue.texts) > 1
    assert all(text.startswith("On sealing\n") for text in bench.queue.texts)
    bench.queue.texts.clear()
    await bench.pipeline.run("", "b.txt", " ".join(lines).encode())
    assert len(bench.queue.texts) > 1
    assert not bench.queue.texts[1].startswith("line 0 of many")


async def test_no_passage_exceeds_the_model_with_its_heading(bench: Bench) -> None:
    words = " ".join(f"word{number}" for number in range(3000))
    await bench.pipeline.run("", "a.md", f"# {'long heading ' * 5}\n\n{words}".encode())
    limit = bench.queue.embedder.max_tokens
    assert all(bench.queue.embedder.count_tokens(text) <= limit for text in bench.queue.texts)
    assert set(words.split()) <= set(" ".join(bench.queue.texts).split())


async def test_a_document_that_is_given_up_stops_being_cut(bench: Bench) -> None:
    content = b"words of a text " * 400_000
    running = asyncio.create_task(bench.pipeline.run("", "a.txt", content))
    await asyncio.sleep(0.3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # Its thread is free again at once: the next document does not wait for the rest of it.
    async with asyncio.timeout(5):
        await asyncio.gather(*(bench.pipeline.run("", "b.txt", b"short") for _ in range(4)))


async def test_reprs_show_nothing_of_a_document(bench: Bench) -> None:
    made = await bench.pipeline.run("application/pdf", "a.pdf", b"%PDF-1.7")
    assert "nectar" not in repr(made)
    assert "nectar" not in repr(made.passages[1])
