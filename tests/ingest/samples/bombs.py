"""Documents that unpack, expand, nest or loop far beyond their size, one for each way."""

from __future__ import annotations

import io
import itertools
import zipfile
import zlib
from collections.abc import Callable

from services.ingest.extract.formats import Format
from tests.ingest.samples.compound import doc
from tests.ingest.samples.documents import zipped

_MIB = 1024 * 1024
_WORD = b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'


def packed_zeros(before: dict[str, bytes], name: str) -> bytes:
    """A zip with a part of 520 MiB that takes a few."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part, content in before.items():
            archive.writestr(part, content, zipfile.ZIP_STORED)
        with archive.open(name, "w") as member:
            for _ in range(520):
                member.write(bytes(_MIB))
    return raw.getvalue()


def many_entries() -> bytes:
    """A zip of more parts than any document has."""
    return zipped({"word/document.xml": b"<x/>"} | {f"word/{number}": b"" for number in range(20_000)})


def nested_flate() -> bytes:
    """A PDF whose page is zeros, compressed twice."""
    packed = zlib.compress(zlib.compress(bytes(512 * _MIB), 9), 9)
    head = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    head += b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    page = b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R>>endobj\n"
    stream = b"4 0 obj<</Length %d/Filter[/FlateDecode/FlateDecode]>>stream\n" % len(packed)
    return head + page + stream + packed + b"\nendstream endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"


def page_loop() -> bytes:
    """A PDF whose list of pages holds itself."""
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
    )


def laughs(body: bytes) -> bytes:
    """XML whose entities expand to 10^12 words; `body` is where the last one goes."""
    entities = b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(12))
    return b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">' + entities + b"]>" + body


def deep_mail() -> bytes:
    """A message within a message, two thousand times."""
    return b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(2000))


def looped_compound() -> bytes:
    """A compound file whose every sector is followed by itself."""
    plain = doc("words")
    table = b"".join(number.to_bytes(4, "little") for number in range(128))
    return plain[: -len(table)] + table


def doubling_macros() -> bytes:
    """LaTeX macros that each call the one before twice, forty deep."""
    names = [f"\\m{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(41)]
    made = [f"\\newcommand{{{names[0]}}}{{words}}"]
    made += [f"\\newcommand{{{name}}}{{{before}{before}}}" for before, name in itertools.pairwise(names)]
    text = "\n".join([*made, "\\begin{document}", names[-1], "\\end{document}"])
    return f"\\documentclass{{article}}\n{text}\n".encode()


_TYPED = {"mimetype": Format.ODT.value.encode()}
BOMBS: dict[str, tuple[Format, Callable[[], bytes]]] = {
    "zip bomb": (Format.DOCX, lambda: packed_zeros({}, "word/document.xml")),
    "zip bomb in OpenDocument": (Format.ODT, lambda: packed_zeros(_TYPED, "content.xml")),
    "zip bomb in a book": (Format.EPUB, lambda: packed_zeros({}, "META-INF/container.xml")),
    "many entries": (Format.DOCX, many_entries),
    "nested flate": (Format.PDF, nested_flate),
    "page loop": (Format.PDF, page_loop),
    "entities in Word": (
        Format.DOCX,
        lambda: zipped({"word/document.xml": laughs(_WORD + b"<w:p><w:r><w:t>&m;</w:t></w:r></w:p>")}),
    ),
    "entities in XML": (Format.XML, lambda: laughs(b"<x>&m;</x>")),
    "entities in SVG": (Format.SVG, lambda: laughs(b"<svg><text>&m;</text></svg>")),
    "entities in a book": (
        Format.FICTION_BOOK,
        lambda: laughs(b"<FictionBook><body><p>&m;</p></body></FictionBook>"),
    ),
    "deep HTML": (Format.HTML, lambda: b"<div>" * 300_000),
    "deep XML": (Format.XML, lambda: b"<a>" * 300_000),
    "deep JSON": (Format.JSON, lambda: b"[" * 1_000_000),
    "deep RTF": (Format.RTF, lambda: b"{\\rtf1 " + b"{" * 1_000_000),
    "deep mail": (Format.EML, deep_mail),
    "doubling macros": (Format.LATEX, doubling_macros),
    "wide table": (Format.CSV, lambda: b"," * 8_000_000),
    "looped compound file": (Format.DOC, looped_compound),
}
