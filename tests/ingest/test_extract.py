"""Text out of real documents, through the real child."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from email.message import EmailMessage

import docx
import openpyxl  # type: ignore[import-untyped]
import pptx
import pytest
from reportlab.lib.pdfencrypt import StandardEncryption  # type: ignore[import-untyped]
from reportlab.pdfgen.canvas import Canvas  # type: ignore[import-untyped]

from services.common.errors import InvalidArgument
from services.ingest.extract.formats import Format, sniff
from services.ingest.extract.plain import clean, decode, extract_plain
from services.ingest.extract.process import ExtractionLimits, Extractor
from services.ingest.extract.wire import Extracted, Outcome


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    """The real parser in the real sandbox."""
    made = Extractor(ExtractionLimits(), workers=1)
    yield made
    await made.close()


def _pdf(pages: list[list[str]], password: str = "") -> bytes:
    raw = io.BytesIO()
    encryption = StandardEncryption(password) if password else None
    canvas = Canvas(raw, encrypt=encryption)
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 720 - 16 * number, line)
        canvas.showPage()
    canvas.save()
    return raw.getvalue()


def _docx() -> bytes:
    document = docx.Document()
    document.add_heading("Wax", 1)
    document.add_paragraph("The cap seals the cell.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "honey", "three jars"
    raw = io.BytesIO()
    document.save(raw)
    return raw.getvalue()


def _pptx() -> bytes:
    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = f"bees {number}"
    raw = io.BytesIO()
    deck.save(raw)
    return raw.getvalue()


def _xlsx() -> bytes:
    book = openpyxl.Workbook()
    book.active.title = "Harvest"
    book.active.append(["hive", "jars"])
    book.active.append(["north", 12])
    raw = io.BytesIO()
    book.save(raw)
    return raw.getvalue()


def _mail() -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ana@example.com", "bo@example.com", "Prüfung"
    message.set_content("Plain body\n")
    message.add_alternative("<p>HTML body</p>", subtype="html")
    message.add_attachment(_docx(), maintype="application", subtype="octet-stream", filename="wax.docx")
    message.add_attachment(b"\x7fELF\0\0", maintype="application", subtype="octet-stream", filename="tool")
    inner = EmailMessage()
    inner["Subject"] = "inner"
    inner.set_content("inner words")
    message.add_attachment(inner.as_bytes(), maintype="application", subtype="x", filename="inner.eml")
    return message.as_bytes()


async def _extract(extractor: Extractor, content: bytes, name: str = "") -> Extracted:
    return await extractor.extract(sniff("", name, content), content)


async def test_pdf_text_keeps_its_pages_and_joins_what_a_line_end_cut(extractor: Extractor) -> None:
    made = await _extract(extractor, _pdf([["the honey-", "comb is full"], [], ["third page"]]))
    assert not made.markdown
    assert [(page.number, page.text) for page in made.pages] == [
        (1, "the honeycomb is full"),
        (3, "third page"),
    ]


async def test_office_documents_keep_headings_tables_and_slides(extractor: Extractor) -> None:
    (page,) = (await _extract(extractor, _docx())).pages
    assert page.number == 0
    assert "# Wax" in page.text
    assert "three jars" in page.text
    slides = (await _extract(extractor, _pptx())).pages
    assert [slide.number for slide in slides] == [1, 2]
    assert ["bees 1" in slides[0].text, "bees 2" in slides[1].text] == [True, True]
    (sheet,) = (await _extract(extractor, _xlsx())).pages
    assert "Harvest" in sheet.text
    assert "north" in sheet.text


async def test_html_keeps_its_title_and_headings_but_no_scripts(extractor: Extractor) -> None:
    content = (
        "<html><head><title>My page</title><style>p{}</style><meta charset=iso-8859-1></head>"
        "<body><h1>Head</h1><script>alert(1)</script><p>caf\xe9</p></body></html>"
    ).encode("latin-1")
    made = await _extract(extractor, content)
    assert made.title == "My page"
    assert made.pages[0].text.split() == ["#", "Head", "café"]


async def test_mail_gives_headers_body_and_known_attachments(extractor: Extractor) -> None:
    made = await _extract(extractor, _mail(), "mail.eml")
    text = "\n".join(page.text for page in made.pages)
    assert made.title == "Prüfung"
    assert "Subject: Prüfung" in text
    assert "Plain body" in text
    assert "HTML body" not in text
    assert "three jars" in text
    assert "inner words" in text


@pytest.mark.parametrize(
    ("form", "content", "reason"),
    [
        (Format.PDF, _pdf([["secret"]], password="p"), "DOCUMENT_ENCRYPTED"),
        (Format.PDF, b"%PDF-1.7\nnothing", "DOCUMENT_BROKEN"),
        (Format.PDF, _pdf([["text"]])[:300], "DOCUMENT_BROKEN"),
        (Format.PDF, _pdf([[], []]), "DOCUMENT_EMPTY"),
        (Format.DOCX, _docx()[:-200], "DOCUMENT_BROKEN"),
        (Format.XLSX, _docx(), "DOCUMENT_BROKEN"),
        (Format.HTML, b"<html><body><script>x</script></body></html>", "DOCUMENT_EMPTY"),
    ],
)
async def test_documents_without_text_to_have_say_why(
    extractor: Extractor, form: Format, content: bytes, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await extractor.extract(form, content)
    assert caught.value.reason == reason


def test_plain_text_of_any_encoding_becomes_clean_text() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        assert decode("Grüße „Wachs“".encode(encoding)) == "Grüße „Wachs“"
    assert clean("a\r\nb\rc\x00\x1bd\n \n\n\n  e ﬁn\n") == "a\nb\ncd\n\n  e fin"
    assert extract_plain(b" \n", markdown=False).outcome is Outcome.EMPTY
