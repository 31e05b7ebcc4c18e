"""What passes between the service and its extraction child, over two pipes and once.

    request   u32 length, format (MIME type); u64 length, content
    ready     one byte, "R", before the request is read
    response  4 bytes "SCX1"; u8 outcome; u8 markdown; u32 length, title;
              u32 pages; for each: u32 number, u32 length, text

Numbers are big-endian, texts UTF-8. The parent takes the child to be hostile: `decode` believes
nothing, bounds everything, and must never do more with the bytes than cut them apart.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

READY = b"R"
MAGIC = b"SCX1"
PAGES_MAX = 20_000
PAGE_NUMBER_MAX = 1_000_000
TITLE_BYTES_MAX = 4096
OUTPUT_BYTES_MAX = 32 * 1024 * 1024


class Outcome(enum.Enum):
    """How an extraction ended."""

    TEXT = 0
    BROKEN = 1
    ENCRYPTED = 2
    EMPTY = 3
    # The document exceeds a limit of the parser, such as the unpacked size.
    REFUSED = 4


@dataclass(frozen=True, slots=True)
class ExtractedPage:
    """The text of one page; `number` counts from 1 and is 0 where the format has no pages."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """What the child found."""

    outcome: Outcome
    markdown: bool = False
    title: str = ""
    pages: tuple[ExtractedPage, ...] = ()


class WireError(Exception):
    """The child's bytes are not a response."""


def encode_request(form: str, size_bytes: int) -> bytes:
    """The request up to the content, which follows it."""
    name = form.encode("ascii")
    return struct.pack(">I", len(name)) + name + struct.pack(">Q", size_bytes)


def encode(extracted: Extracted) -> bytes:
    """The response."""
    title = extracted.title.encode("utf-8", "replace")[:TITLE_BYTES_MAX].decode("utf-8", "ignore").encode()
    parts = [
        MAGIC,
        bytes((extracted.outcome.value, extracted.markdown)),
        struct.pack(">I", len(title)),
        title,
        struct.pack(">I", len(extracted.pages)),
    ]
    for page in extracted.pages:
        text = page.text.encode("utf-8", "replace")
        parts += (struct.pack(">II", page.number, len(text)), text)
    return b"".join(parts)


def decode(raw: bytes) -> Extracted:
    """The response in the bytes, to their last one. Raises WireError."""
    cursor = _Cursor(raw)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise WireError
    try:
        outcome = Outcome(cursor.u8())
    except ValueError:
        raise WireError from None
    markdown = cursor.u8()
    title = cursor.text(TITLE_BYTES_MAX)
    count = cursor.u32()
    if markdown > 1 or count > PAGES_MAX:
        raise WireError
    pages = []
    for _ in range(count):
        number = cursor.u32()
        if number > PAGE_NUMBER_MAX:
            raise WireError
        pages.append(ExtractedPage(number, cursor.text(OUTPUT_BYTES_MAX)))
    if not cursor.at_end or (outcome is not Outcome.TEXT and pages):
        raise WireError
    return Extracted(outcome, bool(markdown), title, tuple(pages))


class _Cursor:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._raw)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._raw):
            raise WireError
        part = self._raw[self._at : end]
        self._at = end
        return part

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def text(self, size_max: int) -> str:
        size = self.u32()
        if size > size_max:
            raise WireError
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise WireError from None
