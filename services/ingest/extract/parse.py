"""The parser of the extraction child: kreuzberg for what needs one, the standard library for mail.

It must never be imported by the service itself: whatever comes out of a document may have taken
this process over, which is why it runs behind `sandbox.lock`.
"""

from __future__ import annotations

import codecs
import io
import re
import secrets
import zipfile
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser

from kreuzberg import (
    ConcurrencyConfig,
    ExtractionConfig,
    ExtractionResult,
    PageConfig,
    PostProcessorConfig,
    extract_bytes_sync,
)
from kreuzberg.exceptions import KreuzbergError

from services.common.errors import InvalidArgument
from services.ingest.extract.formats import ZIPPED, Format, sniff
from services.ingest.extract.plain import clean, decode
from services.ingest.extract.wire import OUTPUT_BYTES_MAX, PAGES_MAX, Extracted, ExtractedPage, Outcome

_ZIP_ENTRIES_MAX = 10_000
_ZIP_UNPACKED_BYTES_MAX = 512 * 1024 * 1024
_ZIP_ENCRYPTED_FLAG = 0x1
_MANIFEST = "META-INF/manifest.xml"
_MANIFEST_BYTES_MAX = 1024 * 1024
_SECTOR = 512
_DOC_MAGIC, _DOC_FLAGS, _DOC_ENCRYPTED = b"\xec\xa5", 0x0A, 0x01
# The header token of the current user's atom of an encrypted presentation (MS-PPT).
_PPT_ENCRYPTED = b"\xdf\xc4\xd1\xf3"
_ATTACHMENTS_MAX = 100
_MAIL_DEPTH_MAX = 3
_MAIL_PARTS_MAX = 1_000
_TITLE_CHARS_MAX = 300

_HTML_HEAD = re.compile(r"<head[\s>].*?</head\s*>", re.IGNORECASE | re.DOTALL)
_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
# The smallest PDF with a page; loads the native library and starts the threads while that is allowed.
_WARM_UP_PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)


_WARM_UP_MAIL = (
    b"Subject: =?utf-8?q?x?=\nFrom: =?iso-8859-1?b?eA==?= <a@b.c>\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\nMIME-Version: 1.0\n"
    b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: quoted-printable\n\nx=3D\n"
    b"--b\nContent-Type: text/html\nContent-Transfer-Encoding: base64\n"
    b"Content-Disposition: attachment; filename*=utf-8''x.html\n\nPHA+eA==\n--b--\n"
)
# Python loads a codec from a file when it is first asked for.
_CODECS = (
    "ascii", "latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp437",
    "cp850", "cp866", "cp932", "cp949", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255",
    "cp1256", "cp1257", "cp1258", "iso8859-2", "iso8859-3", "iso8859-4", "iso8859-5", "iso8859-6",
    "iso8859-7", "iso8859-8", "iso8859-9", "iso8859-10", "iso8859-13", "iso8859-14", "iso8859-15",
    "iso8859-16", "koi8-r", "koi8-u", "mac-roman", "gb2312", "gbk", "gb18030", "big5", "shift_jis",
    "euc-jp", "euc-kr", "iso2022-jp", "iso2022-kr", "utf-7",
)  # fmt: skip


class _Encrypted(Exception):
    pass


class _TooLarge(Exception):
    pass


def warm_up() -> None:
    """Loads all that later needs files or new mappings."""
    for name in _CODECS:
        codecs.lookup(name)
    for form, content in ((Format.PDF, _WARM_UP_PDF), (Format.HTML, b"<p>x"), (Format.EML, _WARM_UP_MAIL)):
        parse(form.value, content)


def parse(form: str, content: bytes) -> Extracted:
    """The text of a document; BROKEN, ENCRYPTED or REFUSED if its parser refuses it, EMPTY without text."""
    kind = Format(form)
    try:
        title, pages = _pages(kind, content, 0)
    except _Encrypted:
        return Extracted(Outcome.ENCRYPTED)
    except _TooLarge:
        return Extracted(Outcome.REFUSED)
    except (KreuzbergError, zipfile.BadZipFile):
        return Extracted(Outcome.BROKEN)
    kept = tuple(page for page in pages if page.text.strip())
    if not kept:
        return Extracted(Outcome.EMPTY)
    if len(kept) > PAGES_MAX or sum(len(page.text) for page in kept) > OUTPUT_BYTES_MAX // 4:
        return Extracted(Outcome.REFUSED)
    return Extracted(
        Outcome.TEXT, kind not in (Format.PDF, Format.TEXT), clean(title)[:_TITLE_CHARS_MAX], kept
    )


def _pages(kind: Format, content: bytes, depth: int) -> tuple[str, list[ExtractedPage]]:
    if kind is Format.EML:
        return _mail(content, depth)
    if kind in (Format.TEXT, Format.MARKDOWN):
        return "", [ExtractedPage(0, clean(decode(content)))]
    if kind is Format.HTML:
        return _html(content)
    if kind in ZIPPED:
        _check_zip(content)
    if kind in (Format.DOC, Format.PPT) and _locked_compound(kind, content):
        raise _Encrypted
    if kind is Format.PDF:
        return _pdf(content)
    return _structured(kind, content)


def _pdf(content: bytes) -> tuple[str, list[ExtractedPage]]:
    result = _extract(Format.PDF, content, "plain")
    pages = [
        ExtractedPage(page["page_number"], _HYPHENATED.sub("", clean(page["content"])))
        for page in result.pages or ()
    ]
    title = str(result.metadata.get("title") or "")
    # What some writers put where nobody gave a title.
    return "" if title == "untitled" else title, pages


def _structured(kind: Format, content: bytes) -> tuple[str, list[ExtractedPage]]:
    # Only slides have numbers that a reader sees; a marker that no document can guess cuts them apart.
    marker = secrets.token_hex(16)
    result = _extract(
        kind, content, "markdown", f"\n\n{marker} {{page_num}}\n\n" if kind is Format.PPTX else ""
    )
    title = str(result.metadata.get("title") or "")
    if kind is not Format.PPTX:
        return title, [ExtractedPage(0, clean(result.content))]
    first, *rest = re.split(rf"{marker} (\d+)", result.content)
    numbers, texts = rest[::2], rest[1::2]
    pages = [ExtractedPage(int(number), clean(text)) for number, text in zip(numbers, texts, strict=True)]
    return title, [ExtractedPage(0, clean(first)), *pages]


def _html(content: bytes) -> tuple[str, list[ExtractedPage]]:
    text = decode(content, _HTML_CHARSET.search(content[:2048]))
    title = _HTML_TITLE.search(text[:65536])
    # kreuzberg would put the head's metadata into the text.
    body = _HTML_HEAD.sub("", text, count=1)
    result = _extract(Format.HTML, body.encode(), "markdown")
    return clean(title[1]) if title else "", [ExtractedPage(0, clean(result.content))]


def _extract(kind: Format, content: bytes, output: str, marker: str = "") -> ExtractionResult:
    pages = PageConfig(extract_pages=True, insert_page_markers=bool(marker), marker_format=marker or None)
    config = ExtractionConfig(
        # The cache would write text in clear to the home folder.
        use_cache=False,
        enable_quality_processing=False,
        pages=pages,
        concurrency=ConcurrencyConfig(max_threads=1),
        postprocessor=PostProcessorConfig(enabled=False),
        output_format=output,
    )
    try:
        return extract_bytes_sync(content, kind.value, config)
    except KreuzbergError as error:
        if "password" in str(error).lower():
            raise _Encrypted from None
        raise


def _check_zip(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.flag_bits & _ZIP_ENCRYPTED_FLAG for entry in entries):
            raise _Encrypted
        if len(entries) > _ZIP_ENTRIES_MAX:
            raise _TooLarge
        # Also where entries overlap, so that one compressed kernel is counted for each of them.
        if sum(entry.file_size for entry in entries) > _ZIP_UNPACKED_BYTES_MAX:
            raise _TooLarge
        if _MANIFEST in archive.namelist():
            # OpenDocument encrypts its parts one by one, and says so here.
            with archive.open(_MANIFEST) as manifest:
                if b"encryption-data" in manifest.read(_MANIFEST_BYTES_MAX):
                    raise _Encrypted


def _locked_compound(kind: Format, content: bytes) -> bool:
    """Whether an older office file says that it is under a password, which its parser does not ask."""
    if kind is Format.PPT:
        return _PPT_ENCRYPTED in content
    # The main stream begins a sector and its flags say so (MS-DOC, FibBase).
    starts = range(_SECTOR, len(content) - _DOC_FLAGS - 1, _SECTOR)
    return any(
        content[start : start + 2] == _DOC_MAGIC and content[start + _DOC_FLAGS + 1] & _DOC_ENCRYPTED
        for start in starts
    )


def _mail(content: bytes, depth: int) -> tuple[str, list[ExtractedPage]]:
    message = BytesParser(EmailMessage, policy=policy.default).parsebytes(content)
    pages = [ExtractedPage(0, _mail_head(message))]
    body = message.get_body(("plain", "html"))
    attachments = 0
    for count, part in enumerate(message.walk()):
        if count > _MAIL_PARTS_MAX or attachments >= _ATTACHMENTS_MAX:
            raise _TooLarge
        if part is body:
            pages.append(ExtractedPage(0, _mail_body(part)))
        elif part.get_filename() and not part.is_multipart():
            attachments += 1
            pages += _attachment(part, depth)
    return str(message.get("subject", "")), pages


def _mail_head(message: EmailMessage) -> str:
    lines = [f"{name}: {message[name]}" for name in ("Subject", "From", "To", "Cc", "Date") if message[name]]
    return clean("\n".join(lines))


def _mail_body(part: EmailMessage) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    charset = part.get_content_charset()
    if part.get_content_type() == Format.HTML.value:
        return "\n\n".join(page.text for page in _html(_recode(content, charset))[1])
    return clean(decode(_recode(content, charset)))


def _attachment(part: EmailMessage, depth: int) -> list[ExtractedPage]:
    """The text of an attachment of a supported format; one that is not, or is broken, has none."""
    name = str(part.get_filename())
    payload = part.get_payload(decode=True)
    if depth >= _MAIL_DEPTH_MAX or not isinstance(payload, bytes):
        return []
    try:
        kind = sniff("", name, payload)
        _title, pages = _pages(kind, payload, depth + 1)
    except (InvalidArgument, KreuzbergError, zipfile.BadZipFile, _Encrypted):
        return []
    text = "\n\n".join(page.text for page in pages if page.text)
    return [ExtractedPage(0, f"# {clean(name)}\n\n{text}")] if text else []


def _recode(content: bytes, charset: str | None) -> bytes:
    if charset is None:
        return content
    try:
        return content.decode(charset, "replace").encode()
    except (LookupError, ValueError):
        return content
