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
_OPEN = "application/vnd.oasis.opendocument."


class Format(enum.Enum):
    """A supported format; the value is its MIME type."""

    PDF = "application/pdf"
    DOCX = _OFFICE + "wordprocessingml.document"
    PPTX = _OFFICE + "presentationml.presentation"
    XLSX = _OFFICE + "spreadsheetml.sheet"
    XLSB = "application/vnd.ms-excel.sheet.binary.macroEnabled.12"
    ODT = _OPEN + "text"
    ODS = _OPEN + "spreadsheet"
    EPUB = "application/epub+zip"
    DOC = "application/msword"
    XLS = "application/vnd.ms-excel"
    PPT = "application/vnd.ms-powerpoint"
    MSG = "application/vnd.ms-outlook"
    RTF = "application/rtf"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    MDX = "text/mdx"
    DJOT = "text/x-djot"
    RST = "text/x-rst"
    ORG = "text/x-org"
    LATEX = "application/x-latex"
    TYPST = "application/x-typst"
    NOTEBOOK = "application/x-ipynb+json"
    FICTION_BOOK = "application/x-fictionbook+xml"
    DOCBOOK = "application/docbook+xml"
    JATS = "application/x-jats+xml"
    XML = "application/xml"
    SVG = "image/svg+xml"
    JSON = "application/json"
    JSON_LINES = "application/x-ndjson"
    CSV = "text/csv"
    TSV = "text/tab-separated-values"
    TEXT = "text/plain"
    EML = "message/rfc822"


ZIPPED = frozenset({Format.DOCX, Format.PPTX, Format.XLSX, Format.XLSB, Format.ODT, Format.ODS, Format.EPUB})
_OLE_FORMATS = frozenset({Format.DOC, Format.XLS, Format.PPT, Format.MSG})
TEXTUAL = frozenset(Format) - ZIPPED - _OLE_FORMATS - {Format.PDF}
# These need no parser, see `plain`.
PLAIN = frozenset({Format.MARKDOWN, Format.TEXT})
_ALIASES = {
    "application/x-pdf": Format.PDF,
    "application/xhtml+xml": Format.HTML,
    "text/x-markdown": Format.MARKDOWN,
    "text/rtf": Format.RTF,
    "text/xml": Format.XML,
    "text/json": Format.JSON,
    "application/jsonl": Format.JSON_LINES,
    "text/x-tex": Format.LATEX,
    "application/x-tex": Format.LATEX,
    # These read as well as they are.
    "text/x-bibtex": Format.TEXT,
    "application/x-bibtex": Format.TEXT,
    "application/x-research-info-systems": Format.TEXT,
    "application/yaml": Format.TEXT,
    "application/x-yaml": Format.TEXT,
    "text/yaml": Format.TEXT,
    "application/toml": Format.TEXT,
    # Templates, shows and workbooks with macros hold the same parts, and no macro is ever run.
    _OFFICE + "wordprocessingml.template": Format.DOCX,
    "application/vnd.ms-word.document.macroEnabled.12": Format.DOCX,
    _OFFICE + "presentationml.slideshow": Format.PPTX,
    "application/vnd.ms-excel.sheet.macroEnabled.12": Format.XLSX,
}
_DECLARED = {name.lower(): form for name, form in ({form.value: form for form in Format} | _ALIASES).items()}
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
    "xlsb": Format.XLSB,
    "odt": Format.ODT,
    "ods": Format.ODS,
    "epub": Format.EPUB,
    "doc": Format.DOC,
    "xls": Format.XLS,
    "ppt": Format.PPT,
    "msg": Format.MSG,
    "rtf": Format.RTF,
    "mdx": Format.MDX,
    "djot": Format.DJOT,
    "rst": Format.RST,
    "org": Format.ORG,
    "tex": Format.LATEX,
    "typ": Format.TYPST,
    "ipynb": Format.NOTEBOOK,
    "fb2": Format.FICTION_BOOK,
    "docbook": Format.DOCBOOK,
    "dbk": Format.DOCBOOK,
    "jats": Format.JATS,
    "xml": Format.XML,
    "svg": Format.SVG,
    "json": Format.JSON,
    "jsonl": Format.JSON_LINES,
    "ndjson": Format.JSON_LINES,
    "csv": Format.CSV,
    "tsv": Format.TSV,
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
    (b"xl/workbook.bin", Format.XLSB),
)
# The first entry of these says which they are, stored as it is behind a header of 30 bytes.
_ZIP_TYPE = 30
_ZIP_TYPES = tuple(
    (b"mimetype" + form.value.encode(), form) for form in (Format.ODT, Format.ODS, Format.EPUB)
)
_ZIP = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES_MAX = 22 + 65535
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# What the streams of each are called; one may lie within another, so the outer kinds come first.
_OLE_STREAMS = tuple(
    (name.encode("utf-16-le"), form)
    for name, form in (
        ("__properties_version1.0", Format.MSG),
        ("PowerPoint Document", Format.PPT),
        ("WordDocument", Format.DOC),
        ("Workbook", Format.XLS),
    )
)
_RTF = b"{\\rtf"
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
    found = _binary_formats(content)
    if not found:
        return _textual(wanted, name, content)
    if wanted is None:
        by_name = _by_name(name)
        return by_name if by_name in found else found[0]
    if wanted not in found:
        raise unsupported("is not the format of the content")
    return wanted


def unsupported(why: str) -> InvalidArgument:
    """The refusal of a format, with what is supported."""
    return invalid(
        "content_type",
        f"{why}; send PDF, an office document, HTML, mail, a book or a text format (see the documentation)",
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


def _binary_formats(content: bytes) -> list[Format]:
    """The binary formats that the content can be, none for text; raises for any other binary content."""
    head = content[:_HEAD_BYTES]
    if head.startswith(_ZIP):
        return [_zipped(content)]
    if head.startswith(_OLE):
        if _OLE_ENCRYPTED in content:
            raise invalid(
                "chunk", "the document is encrypted; remove its password", reason=DOCUMENT_ENCRYPTED
            )
        found = [form for stream, form in _OLE_STREAMS if stream in content]
        if not found:
            raise unsupported("the content is of another kind of compound file")
        return found
    if b"%PDF-" in head[:1024]:
        return [Format.PDF]
    if head.startswith(_RTF):
        return [Format.RTF]
    if not head.startswith(_BOMS) and _BINARY.search(head):
        raise unsupported("the content is not of a supported format")
    return []


def _zipped(content: bytes) -> Format:
    for start, form in _ZIP_TYPES:
        if content.startswith(start, _ZIP_TYPE):
            return form
    names = _zip_directory(content)
    for part, form in _ZIP_PARTS:
        if part in names:
            return form
    raise unsupported("the content is an archive of another kind")


def _zip_directory(content: bytes) -> bytes:
    """The part with the names of a zip's own entries, which are not those of a zip within."""
    end = content.rfind(_ZIP_END, max(0, len(content) - _ZIP_END_BYTES_MAX))
    if end < 0 or end + 20 > len(content):
        return b""
    size, offset = struct.unpack_from("<II", content, end + 12)
    return content[offset : offset + size]


def _textual(wanted: Format | None, name: str, content: bytes) -> Format:
    # What is RTF says so itself.
    if wanted is not None:
        if wanted not in TEXTUAL or wanted is Format.RTF:
            raise unsupported("is not the format of the content")
        return wanted
    by_name = _by_name(name)
    if by_name is not None:
        if by_name not in TEXTUAL or by_name is Format.RTF:
            raise unsupported("the name is not of the format of the content")
        return by_name
    head = content[:_HEAD_BYTES]
    if _HTML.search(head[:1024]):
        return Format.HTML
    if _MAIL_START.match(head) and len(_MAIL_HEADER.findall(head)) >= _MAIL_HEADERS_MIN:
        return Format.EML
    return Format.TEXT


def _by_name(name: str) -> Format | None:
    return _EXTENSIONS.get(name.rpartition(".")[2].lower()) if "." in name else None
