"""A tiny document of each format: `SAMPLES[format]` has a heading or title WAX and the words of HONEY."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from email.message import EmailMessage

import docx
import openpyxl  # type: ignore[import-untyped]
import pptx
from reportlab.pdfgen.canvas import Canvas  # type: ignore[import-untyped]

from services.ingest.extract.formats import Format
from tests.ingest.samples.compound import doc, msg, ppt, xls

WAX = "Wax"
HONEY = "honey words"


def zipped(parts: Mapping[str, str | bytes], *, deflate: bool = True) -> bytes:
    """A zip of these parts; the first is stored as it is, as OpenDocument and EPUB want it."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for place, (name, content) in enumerate(parts.items()):
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if place and deflate else zipfile.ZIP_STORED)
    return raw.getvalue()


def pdf(pages: list[str]) -> bytes:
    """A PDF with a line of text a page."""
    raw = io.BytesIO()
    canvas = Canvas(raw)
    for text in pages:
        canvas.drawString(72, 720, text)
        canvas.showPage()
    canvas.save()
    return raw.getvalue()


def word(text: str = HONEY) -> bytes:
    """A Word document."""
    made = docx.Document()
    made.add_heading(WAX, 1)
    made.add_paragraph(text)
    raw = io.BytesIO()
    made.save(raw)
    return raw.getvalue()


def slides(text: str = HONEY) -> bytes:
    """A presentation of one slide."""
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = WAX, text
    raw = io.BytesIO()
    deck.save(raw)
    return raw.getvalue()


def workbook(text: str = HONEY) -> bytes:
    """A workbook of one sheet."""
    book = openpyxl.Workbook()
    book.active.title = WAX
    book.active.append([text])
    raw = io.BytesIO()
    book.save(raw)
    return raw.getvalue()


def binary_workbook() -> bytes:
    """A workbook in the binary form (MS-XLSB), as small as its readers take it."""

    def record(kind: int, content: bytes = b"") -> bytes:
        number = bytes([kind]) if kind < 128 else bytes([kind & 0x7F | 0x80, kind >> 7])
        return number + bytes([len(content)]) + content

    def wide(text: str) -> bytes:
        return struct.pack("<I", len(text)) + text.encode("utf-16-le")

    sheets = record(143) + record(156, struct.pack("<II", 0, 1) + wide("rId1") + wide(WAX)) + record(144)
    rows = record(0, struct.pack("<II", 0, 0) + bytes(17)) + record(6, bytes(8) + wide(HONEY))
    sheet = record(129) + record(148, bytes(16)) + record(145) + rows + record(146) + record(130)
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship '
        'Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" '
        'Target="worksheets/sheet1.bin"/></Relationships>'
    )
    return zipped(
        {
            "[Content_Types].xml": "<Types/>",
            "xl/workbook.bin": record(131) + sheets + record(132),
            "xl/_rels/workbook.bin.rels": relations,
            "xl/worksheets/sheet1.bin": sheet,
        }
    )


def open_document(kind: str, body: str, locked: str = "") -> bytes:
    """An OpenDocument file of a kind."""
    office = "urn:oasis:names:tc:opendocument:xmlns"
    spaces = " ".join(f'xmlns:{name}="{office}:{name}:1.0"' for name in ("office", "text", "table"))
    content = f"<office:{kind}>{body}</office:{kind}>"
    return zipped(
        {
            "mimetype": f"application/vnd.oasis.opendocument.{kind}",
            "META-INF/manifest.xml": f'<manifest:manifest xmlns:manifest="{office}:manifest:1.0">{locked}'
            "</manifest:manifest>",
            "content.xml": f"<office:document-content {spaces}><office:body>{content}</office:body>"
            "</office:document-content>",
        }
    )


def epub() -> bytes:
    """A book of one chapter."""
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Bees</dc:title></metadata><manifest>'
        '<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
        '<rootfile full-path="a.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    chapter = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><h1>{WAX}</h1><p>{HONEY}</p></body></html>'
    parts = {"META-INF/container.xml": container, "a.opf": package, "a.xhtml": chapter}
    return zipped({"mimetype": "application/epub+zip", **parts})


def mail() -> bytes:
    """A message."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ana@example.com", "bo@example.com", WAX
    message.set_content(f"{HONEY}\n")
    return message.as_bytes()


def notebook() -> bytes:
    """A notebook with a cell of text."""
    cell = {"cell_type": "markdown", "metadata": {}, "source": [f"# {WAX}\n", HONEY]}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


_XML = '<?xml version="1.0"?>'
SAMPLES: dict[Format, bytes] = {
    Format.PDF: pdf([f"{WAX} {HONEY}"]),
    Format.DOCX: word(),
    Format.PPTX: slides(),
    Format.XLSX: workbook(),
    Format.XLSB: binary_workbook(),
    Format.ODT: open_document(
        "text", f'<text:h text:outline-level="1">{WAX}</text:h><text:p>{HONEY}</text:p>'
    ),
    Format.ODS: open_document(
        "spreadsheet",
        f'<table:table table:name="{WAX}"><table:table-row><table:table-cell office:value-type="string">'
        f"<text:p>{HONEY}</text:p></table:table-cell></table:table-row></table:table>",
    ),
    Format.EPUB: epub(),
    Format.DOC: doc(f"{WAX}\n{HONEY}"),
    Format.XLS: xls(WAX, [[HONEY]]),
    Format.PPT: ppt([WAX, HONEY]),
    Format.MSG: msg(WAX, HONEY),
    Format.RTF: rf"{{\rtf1\ansi {WAX}\par {HONEY}\par}}".encode(),
    Format.HTML: f"<html><body><h1>{WAX}</h1><p>{HONEY}</body></html>".encode(),
    Format.MARKDOWN: f"# {WAX}\n\n{HONEY}\n".encode(),
    Format.MDX: f"# {WAX}\n\n<Box>{HONEY}</Box>\n".encode(),
    Format.DJOT: f"# {WAX}\n\n{HONEY}\n".encode(),
    Format.RST: f"{WAX}\n===\n\n{HONEY}\n".encode(),
    Format.ORG: f"* {WAX}\n{HONEY}\n".encode(),
    Format.LATEX: (
        f"\\documentclass{{article}}\n\\begin{{document}}\n\\section{{{WAX}}}\n{HONEY}\n\\end{{document}}\n"
    ).encode(),
    Format.TYPST: f"= {WAX}\n\n{HONEY}\n".encode(),
    Format.NOTEBOOK: notebook(),
    Format.FICTION_BOOK: (
        f'{_XML}<FictionBook xmlns="http://www.gribuser.ru/xml/fictionbook/2.0"><body><section>'
        f"<title><p>{WAX}</p></title><p>{HONEY}</p></section></body></FictionBook>"
    ).encode(),
    Format.DOCBOOK: (
        f'{_XML}<article xmlns="http://docbook.org/ns/docbook"><section><title>{WAX}</title>'
        f"<para>{HONEY}</para></section></article>"
    ).encode(),
    Format.JATS: (
        f"{_XML}<article><body><sec><title>{WAX}</title><p>{HONEY}</p></sec></body></article>"
    ).encode(),
    Format.XML: f"{_XML}<hive><{WAX}>{HONEY}</{WAX}></hive>".encode(),
    Format.SVG: (
        f'<svg xmlns="http://www.w3.org/2000/svg"><title>{WAX}</title><text>{HONEY}</text></svg>'
    ).encode(),
    Format.JSON: json.dumps({WAX: {"of": HONEY}}).encode(),
    Format.JSON_LINES: b"".join(json.dumps({WAX: HONEY}).encode() + b"\n" for _ in range(2)),
    Format.CSV: f"{WAX},jars\n{HONEY},12\n".encode(),
    Format.TSV: f"{WAX}\tjars\n{HONEY}\t12\n".encode(),
    Format.TEXT: f"{WAX}\n\n{HONEY}\n".encode(),
    Format.EML: mail(),
}
