"""Documents to passages that a model can take in whole.

A passage ends at the best boundary within the model's token limit (heading, paragraph, sentence,
word, in that order), never spans pages, so that a hit can name its page, and repeats a little of
the passage before it. No character of the text is lost but white space at the edges. Plain text
that needs several passages is cut into parts of about the same size: a short rest would say too
little to be found for the right reason.

Tokens are counted by a function of the embedder, not by a tokenizer handed to the splitter: the same
for every kind of embedder, and Python gets the GIL back between two counts, so a large document
does not stall other calls. Run it in a thread all the same. Where the embedder can say where tokens
begin, each block is looked at once (see token_counts).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from services.common.errors import invalid
from services.ingest.token_counts import PartCounter

CHUNKS_MAX = 20_000
# A passage has at most this many characters for each token it may have. Prose has 4 to 5; the
# bound catches what a tokenizer takes for one unknown word, such as a page of base64.
CHARS_PER_TOKEN_MAX = 16
_CHARS_PER_TOKEN_USUAL = 5
HEADING_CHARS_MAX = 200
MAX_TOKENS_MIN = 16
# Pages go to the splitter in blocks, so that whoever iterates can stop in between, and without long
# gaps: the time it takes grows with the square of a block for some texts, such as empty lines alone.
_BLOCK_CHARS = 20_000
_GAP = re.compile(r"\s{32,}")
_BLOCK_ENDS = ("\n\n", "\n", " ")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")

Format = Literal["text", "markdown"]
# Where each token of a text begins, in characters; None from an embedder that cannot say.
TokenStarts = Callable[[str], Sequence[int] | None]


@dataclass(frozen=True, slots=True)
class PageText:
    """The text of one page; `page` counts from 1, 0 where the format has no pages."""

    page: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage: its place in the document, its page, the nearest heading above, its text.

    `offset` is where the text begins in its page, in characters. Heading and text are not printed,
    so that they cannot reach a log.
    """

    index: int
    page: int
    heading: str = field(repr=False)
    offset: int
    text: str = field(repr=False)


def chunk(
    pages: Sequence[PageText],
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    overlap: int = 32,
    form: Format = "text",
    chunks_max: int = CHUNKS_MAX,
    token_starts: TokenStarts = lambda _text: None,
) -> list[Chunk]:
    """All passages of a document in order; none when there is no text.

    Raises InvalidArgument when there would be more than `chunks_max`.
    """
    return list(
        iterate_chunks(
            pages,
            count_tokens=count_tokens,
            max_tokens=max_tokens,
            overlap=overlap,
            form=form,
            chunks_max=chunks_max,
            token_starts=token_starts,
        )
    )


def iterate_chunks(
    pages: Sequence[PageText],
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    overlap: int = 32,
    form: Format = "text",
    chunks_max: int = CHUNKS_MAX,
    token_starts: TokenStarts = lambda _text: None,
) -> Iterator[Chunk]:
    """As `chunk`, one at a time, so that the work can be given up in between."""
    if max_tokens < MAX_TOKENS_MIN or not 0 <= overlap < max_tokens // 2:
        raise ValueError(f"max_tokens is at least {MAX_TOKENS_MIN}, overlap less than its half")
    # Too many whatever the boundaries, since passages are bounded in characters; saves the work.
    if sum(len(page.text) for page in pages) > chunks_max * max_tokens * CHARS_PER_TOKEN_MAX:
        raise _too_many(chunks_max)
    splitters = _Splitters(count_tokens, token_starts, max_tokens, overlap, form)
    block_chars = max(_BLOCK_CHARS, 2 * max_tokens * CHARS_PER_TOKEN_MAX)
    index, heading = 0, ""
    for page in pages:
        headings = _headings(page.text) if form == "markdown" else []
        for offset, text in _split(page.text, splitters, block_chars):
            while headings and headings[0][0] <= offset:
                heading = headings.pop(0)[1]
            if index == chunks_max:
                raise _too_many(chunks_max)
            yield Chunk(index=index, page=page.page, heading=heading, offset=offset, text=text)
            index += 1
        # What stands below the page's last passage start belongs to the next page's passages.
        heading = headings[-1][1] if headings else heading


class _Splitters:
    """The splitter for each block of text."""

    def __init__(
        self,
        count_tokens: Callable[[str], int],
        token_starts: TokenStarts,
        max_tokens: int,
        overlap: int,
        form: Format,
    ) -> None:
        self._count_tokens = count_tokens
        self._token_starts = token_starts
        self._max_tokens = max_tokens
        self._overlap = overlap
        self._form = form

    def of(self, text: str) -> TextSplitter | MarkdownSplitter:
        """One whose passages of this text are about as long as each other; Markdown has sections instead."""
        starts = self._token_starts(text)
        count_tokens = self._count_tokens if starts is None else PartCounter(text, starts, self._count_tokens)
        count = _bounded(count_tokens, self._max_tokens)
        # Estimated where the text is so long that its tokens are not counted (see _bounded).
        tokens = max(len(text) // _CHARS_PER_TOKEN_USUAL, count(text))
        if self._form == "markdown" or tokens <= self._max_tokens:
            return self._of_size(count, self._max_tokens)
        parts = math.ceil((tokens - self._overlap) / (self._max_tokens - self._overlap))
        even = math.ceil((tokens + (parts - 1) * self._overlap) / parts)
        # Room to end at a boundary; without it one more passage would hold the rest.
        size = max(even + self._max_tokens // 16, 2 * self._overlap + 2)
        return self._of_size(count, min(size, self._max_tokens))

    def _of_size(self, count: Callable[[str], int], size: int) -> TextSplitter | MarkdownSplitter:
        kind = MarkdownSplitter if self._form == "markdown" else TextSplitter
        return kind.from_callback(count, size, overlap=self._overlap)


def _split(text: str, splitters: _Splitters, block_chars: int) -> Iterator[tuple[int, str]]:
    for begin, end in _blocks(text, block_chars):
        block = text[begin:end]
        for offset, passage in splitters.of(block).chunk_indices(block):
            if passage.strip():
                yield begin + offset, passage


def _blocks(text: str, block_chars: int) -> Iterator[tuple[int, int]]:
    """Parts of the text that together leave out nothing but long gaps."""
    begin = 0
    for gap in _GAP.finditer(text):
        yield from _cut(text, begin, gap.start(), block_chars)
        begin = gap.end()
    yield from _cut(text, begin, len(text), block_chars)


def _cut(text: str, begin: int, end: int, block_chars: int) -> Iterator[tuple[int, int]]:
    while end - begin > block_chars:
        limit = begin + block_chars
        # In the second half of the block alone, or blocks could become as small as a word.
        places = ((text.rfind(mark, begin + block_chars // 2, limit), mark) for mark in _BLOCK_ENDS)
        middle = next((at + len(mark) for at, mark in places if at >= 0), limit)
        yield begin, middle
        begin = middle
    if end > begin:
        yield begin, end


def _bounded(count_tokens: Callable[[str], int], max_tokens: int) -> Callable[[str], int]:
    def size(text: str) -> int:
        # The floor also keeps the overlap short of one endless word, which counts as one token:
        # passages that advance by a character each would take hours.
        floor = -(-len(text) // CHARS_PER_TOKEN_MAX)
        # Too long whatever its tokens: counting them would cost most of the time spent here.
        return floor if floor > max_tokens else max(floor, count_tokens(text))

    return size


def _headings(text: str) -> list[tuple[int, str]]:
    """Offset and words of each `#` heading outside code fences, in order."""
    found: list[tuple[int, str]] = []
    fence, offset = "", 0
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark is not None and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and (opening := _HEADING.match(line)) is not None:
            words = line[opening.end() :].strip().rstrip("#").rstrip()
            if words:
                found.append((offset, words[:HEADING_CHARS_MAX]))
        offset += len(line)
    return found


def _too_many(chunks_max: int) -> Exception:
    return invalid(
        "content", f"gives more than {chunks_max} passages; split the document", reason="DOCUMENT_TOO_LARGE"
    )
