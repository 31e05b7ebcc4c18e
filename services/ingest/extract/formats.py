"""Which format a document has: by what was declared, by its content and, among texts, by its name.

Only an allow-list passes. Content decides for the binary formats, and a declaration that content
contradicts is refused, so that no document is parsed as something that its sender hid it in
(polyglots). This module looks at bytes and must never parse them.
"""

from __future__ import annotations

import enum
import re
import struct

from services.common.errors import InvalidArgument, invalid

UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
DOCUMENT_EMPTY = "DOCUMENT_EMPTY"
DOCUMENT_ENCRYPTED = "DOCUMENT_ENCRYPTED"

_OFFICE = "application/vnd.openxmlformats-officedocument."


class Format(enum.Enum):
    """A supported format; the value is its MIME type."""

    PDF = "application/pdf"
    DOCX = _OFFICE + "wordprocessingml.document"
    PPTX = _OFFICE + "presentationml.presentation"
    XLSX = _OFFICE + "spreadsheetml.sheet"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    TEXT = "text/plain"
    EML = "message/rfc822"


TEXTUAL = frozenset({Format.HTML, Format.MARKDOWN, Format.TEXT, Format.EML})
# These need no parser, see `plain`.
PLAIN = frozenset({Format.MARKDOWN, Format.TEXT})
_ALIASES = {
    "application/x-pdf": Format.PDF,
    "application/xhtml+xml": Format.HTML,
    "text/x-markdown": Format.MARKDOWN,
}
_DECLARED = {form.value: form for form in Format} | _ALIASES
# Says nothing about the content, so it counts as not declared.
_UNDECLARED = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_EXTENSIONS = {
    "pdf": Format.PDF,
    "docx": Format.DOCX,
    "pptx": Format.PPTX,
    "xlsx": Format.XLSX,
    "html": Format.HTML,
    "htm": Format.HTML,
    "xhtml": Format.HTML,
    "md": Format.MARKDOWN,
    "markdown": Format.MARKDOWN,
    "txt": Format.TEXT,
    "text": Format.TEXT,
    "eml": Format.EML,
}
_ZIP_PARTS = (
    (b"word/document.xml", Format.DOCX),
    (b"ppt/presentation.xml", Format.PPTX),
    (b"xl/workbook.xml", Format.XLSX),
)
_ZIP = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES_MAX = 22 + 65535
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_HEAD_BYTES = 4096
_BOMS = (b"\xff\xfe", b"\xfe\xff")
# Control characters that no text has; NUL, ESC and friends mark binary content.
_BINARY = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f]")
_HTML = re.compile(rb"<(!doctype\s+html|html[\s>]|head[\s>]|body[\s>])", re.IGNORECASE)
_MAIL_HEADER = re.compile(
    rb"^(from|to|subject|date|message-id|received|mime-version|return-path):", re.IGNORECASE | re.MULTILINE
)
_MAIL_START = re.compile(rb"[\x21-\x39\x3b-\x7e]+:[ \t]")
_MAIL_HEADERS_MIN = 3


def sniff(declared: str, name: str, content: bytes) -> Format:
    """The format of a document.

    Raises InvalidArgument: DOCUMENT_EMPTY without content, DOCUMENT_ENCRYPTED for office files
    under a password, UNSUPPORTED_FORMAT for all that is not on the list or contradicts itself.
    """
    if not content:
        raise invalid("chunk", "the document has no content", reason=DOCUMENT_EMPTY)
    wanted = _declared(declared)
    found = _binary_format(content)
    if found is None:
        return _textual(wanted, name, content)
    if wanted not in (None, found):
        raise unsupported("is not the format of the content")
    return found


def unsupported(why: str) -> InvalidArgument:
    """The refusal of a format, with what is supported."""
    return invalid(
        "content_type",
        f"{why}; send PDF, DOCX, PPTX, XLSX, HTML, Markdown, plain text or EML",
        reason=UNSUPPORTED_FORMAT,
    )


def _declared(declared: str) -> Format | None:
    essence = declared.split(";", maxsplit=1)[0].strip().lower()
    if essence in _UNDECLARED:
        return None
    form = _DECLARED.get(essence)
    if form is None:
        raise unsupported("is not supported")
    return form


def _binary_format(content: bytes) -> Format | None:
    """The binary format that the content proves, None for text; raises for any other binary content."""
    head = content[:_HEAD_BYTES]
    if head.startswith(_ZIP):
        names = _zip_directory(content)
        for part, form in _ZIP_PARTS:
            if part in names:
                return form
        raise unsupported("the content is an archive of another kind")
    if head.startswith(_OLE):
        if _OLE_ENCRYPTED in content:
            raise invalid(
                "chunk", "the document is encrypted; remove its password", reason=DOCUMENT_ENCRYPTED
            )
        raise unsupported("the content is of an older office format")
    if b"%PDF-" in head[:1024]:
        return Format.PDF
    if head.startswith(_BOMS):
        return None
    if _BINARY.search(head):
        raise unsupported("the content is not of a supported format")
    return None


def _zip_directory(content: bytes) -> bytes:
    """The part with the names of a zip's own entries, which are not those of a zip within."""
    end = content.rfind(_ZIP_END, max(0, len(content) - _ZIP_END_BYTES_MAX))
    if end < 0 or end + 20 > len(content):
        return b""
    size, offset = struct.unpack_from("<II", content, end + 12)
    return content[offset : offset + size]


def _textual(wanted: Format | None, name: str, content: bytes) -> Format:
    if wanted is not None:
        if wanted not in TEXTUAL:
            raise unsupported("is not the format of the content")
        return wanted
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    by_name = _EXTENSIONS.get(extension)
    if by_name is not None:
        if by_name not in TEXTUAL:
            raise unsupported("the name is not of the format of the content")
        return by_name
    head = content[:_HEAD_BYTES]
    if _HTML.search(head[:1024]):
        return Format.HTML
    if _MAIL_START.match(head) and len(_MAIL_HEADER.findall(head)) >= _MAIL_HEADERS_MIN:
        return Format.EML
    return Format.TEXT
