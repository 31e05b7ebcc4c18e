"""Which format a document has (E23): content proves, declarations must agree, all else is refused."""

from __future__ import annotations

import contextlib
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.ingest.extract.formats import Format, sniff

_MAIL = b"From: a@b.c\r\nTo: d@e.f\r\nSubject: s\r\n\r\nbody"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def _zip(*names: str, nested: bytes = b"") -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name in names:
            archive.writestr(name, nested)
    return raw.getvalue()


_DOCX = _zip("[Content_Types].xml", "word/document.xml")
_XLSX = _zip("[Content_Types].xml", "xl/workbook.xml")
_PPTX = _zip("[Content_Types].xml", "ppt/presentation.xml")


@pytest.mark.parametrize(
    ("declared", "name", "content", "expected"),
    [
        ("", "a.pdf", b"%PDF-1.7\n", Format.PDF),
        ("application/pdf", "", b"junk before\n%PDF-1.4", Format.PDF),
        ("", "noname", _DOCX, Format.DOCX),
        ("", "noname", _XLSX, Format.XLSX),
        ("", "noname", _PPTX, Format.PPTX),
        # A stored workbook inside a document does not make it a workbook, nor the other way round.
        ("", "", _zip("word/document.xml", "word/embeddings/x.xlsx", nested=_XLSX), Format.DOCX),
        ("", "", _zip("xl/workbook.xml", "xl/embeddings/x.docx", nested=_DOCX), Format.XLSX),
        ("application/octet-stream", "a.bin", b"%PDF-1.7\n", Format.PDF),
        ("text/html; charset=utf-8", "a.txt", b"<p>x", Format.HTML),
        ("TEXT/PLAIN", "a.html", b"<html>", Format.TEXT),
        ("", "a.HTM", b"words", Format.HTML),
        ("", "a.md", b"# words", Format.MARKDOWN),
        ("", "a.eml", b"Subject: x\n\n", Format.EML),
        ("", "page", b"  <!DOCTYPE html><html>", Format.HTML),
        ("", "mail", _MAIL, Format.EML),
        ("", "notes.py", b"print('x')", Format.TEXT),
        ("", "a.csv", b"a,b\n1,2", Format.CSV),
        ("", "a.txt", "\ufeffwörds".encode("utf-16"), Format.TEXT),
        ("", "", b"no name at all", Format.TEXT),
    ],
)
def test_supported_documents_are_recognised(
    declared: str, name: str, content: bytes, expected: Format
) -> None:
    assert sniff(declared, name, content) is expected


@pytest.mark.parametrize(
    ("declared", "name", "content", "reason"),
    [
        ("text/plain", "a.txt", b"", "DOCUMENT_EMPTY"),
        ("text/html", "a.html", b"%PDF-1.7\n<html>", "UNSUPPORTED_FORMAT"),
        ("application/pdf", "a.pdf", b"<html>", "UNSUPPORTED_FORMAT"),
        ("application/pdf", "a.pdf", _DOCX, "UNSUPPORTED_FORMAT"),
        (Format.DOCX.value, "a.docx", _XLSX, "UNSUPPORTED_FORMAT"),
        ("", "a.docx", b"just words", "UNSUPPORTED_FORMAT"),
        ("", "a.pdf", b"just words", "UNSUPPORTED_FORMAT"),
        ("", "a.zip", _zip("a.txt"), "UNSUPPORTED_FORMAT"),
        ("", "a.jar", b"PK\x03\x04" + b"\0" * 40, "UNSUPPORTED_FORMAT"),
        ("", "a.doc", _OLE + bytes(512), "UNSUPPORTED_FORMAT"),
        ("", "a.docx", _OLE + "EncryptedPackage".encode("utf-16-le"), "DOCUMENT_ENCRYPTED"),
        ("", "a.exe", b"MZ\x90\x00\x03", "UNSUPPORTED_FORMAT"),
        ("", "a.txt", b"GIF89a\x01\x00\x01\x00", "UNSUPPORTED_FORMAT"),
        ("image/png", "a.png", b"words", "UNSUPPORTED_FORMAT"),
        ("application/x-sh", "a.sh", b"#!/bin/sh", "UNSUPPORTED_FORMAT"),
        ("not a type", "a.txt", b"words", "UNSUPPORTED_FORMAT"),
    ],
)
def test_everything_else_is_refused_with_its_reason(
    declared: str, name: str, content: bytes, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        sniff(declared, name, content)
    assert caught.value.reason == reason


@given(declared=st.text(max_size=40), name=st.text(max_size=40), content=st.binary(max_size=2000))
def test_any_input_gives_a_format_or_a_typed_refusal(declared: str, name: str, content: bytes) -> None:
    found = None
    with contextlib.suppress(InvalidArgument):
        found = sniff(declared, name, content)
    assert found is None or content
    if found is Format.PDF:
        assert b"%PDF-" in content


@given(
    head=st.sampled_from([b"%PDF-1.7", _DOCX, _OLE, b"MZ\0\0"]),
    declared=st.sampled_from(["text/plain", "text/html", "text/markdown", "message/rfc822"]),
    name=st.sampled_from(["a.txt", "a.html", "a.md", "a.eml"]),
    tail=st.binary(max_size=200),
)
def test_binary_content_never_passes_for_a_declared_text(
    head: bytes, declared: str, name: str, tail: bytes
) -> None:
    with pytest.raises(InvalidArgument):
        sniff(declared, name, head + tail)
