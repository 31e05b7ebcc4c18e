"""Plain text and Markdown: the formats that need no parser, and the clean-up that all text gets.

Decoding and a few linear substitutions by the interpreter are all there is, so these run in the
service itself: a child process for each note would cost more than its embedding. This module must
never grow into a parser; what has structure goes to the child.
"""

from __future__ import annotations

import re

from services.ingest.extract.wire import Extracted, ExtractedPage, Outcome

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*\n")
# PDF writes ligatures as one character, which no query does.
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})


def extract_plain(content: bytes, *, markdown: bool) -> Extracted:
    """The text of a document that is nothing but text; EMPTY for white space alone."""
    text = clean(decode(content))
    if not text:
        return Extracted(Outcome.EMPTY)
    return Extracted(Outcome.TEXT, markdown, "", (ExtractedPage(0, text),))


def clean(text: str) -> str:
    """Text with one kind of line end, no control characters and no ligatures."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_LIGATURES)
    return _BLANK_LINES.sub("\n\n", _CONTROLS.sub("", text)).strip()


def decode(content: bytes, charset: re.Match[bytes] | None = None) -> str:
    """Text of unknown encoding: by its byte order mark, as UTF-8, as declared, else as Windows-1252."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if charset is not None:
        try:
            return content.decode(charset[1].decode("ascii"), "replace")
        except (LookupError, ValueError):
            pass
    return content.decode("cp1252", "replace")
