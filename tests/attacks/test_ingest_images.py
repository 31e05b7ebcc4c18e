"""E28: images that are small on the wire and huge once unpacked, in each format that carries some."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import AsyncIterator

import docx
import PIL.Image
import pptx
import psutil
import pytest

from services.common.errors import InvalidArgument
from services.ingest.extract.formats import Format, sniff
from services.ingest.extract.process import ExtractionLimits, Extractor

SIDE = 50_000
_MIB = 1024 * 1024


def png(side: int) -> bytes:
    """A white image of one bit a pixel, packed as it is made."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def in_docx(image: bytes) -> bytes:
    """A page of text with the image."""
    document = docx.Document()
    document.add_paragraph("Words beside the image.")
    document.add_picture(io.BytesIO(image), width=docx.shared.Cm(5))
    raw = io.BytesIO()
    document.save(raw)
    return raw.getvalue()


def in_pptx(image: bytes) -> bytes:
    """A slide of text with the image."""
    slides = pptx.Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[5])
    slide.shapes.title.text = "Words beside the image."
    slide.shapes.add_picture(io.BytesIO(image), 0, 0, width=pptx.util.Cm(5))
    raw = io.BytesIO()
    slides.save(raw)
    return raw.getvalue()


def in_pdf(side: int) -> bytes:
    """A page of text with an image of that many pixels a side."""
    packer = zlib.compressobj(9)
    row = b"\xff" * ((side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    text = b"BT /F1 12 Tf 10 50 Td (Words beside the image.) Tj ET q 50 0 0 50 0 0 cm /I Do Q"
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>/XObject<</I 6 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(text), text),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        b"<</Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 1/ColorSpace/DeviceGray"
        b"/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (side, side, len(data), data),
    ]
    raw = b"%PDF-1.4\n"
    for number, part in enumerate(parts, 1):
        raw += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    return raw + b"trailer<</Root 1 0 R>>\n%%EOF\n"


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    made = Extractor(ExtractionLimits(2048 * _MIB, 60, 60.0), workers=1)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def image() -> bytes:
    """2.5 thousand million pixels."""
    made = png(SIDE)
    assert len(made) < _MIB
    return made


def test_an_image_alone_is_not_taken_at_all(image: bytes) -> None:
    for declared in ("image/png", "", "text/plain"):
        with pytest.raises(InvalidArgument) as caught:
            sniff(declared, "a.png", image)
        assert caught.value.reason == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize("form", [Format.DOCX, Format.PPTX, Format.PDF], ids=lambda form: form.name)
async def test_an_image_in_a_document_is_not_unpacked(
    form: Format, image: bytes, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E28: the text comes out within the limits of the child; the service's memory stays as it was."""
    # What makes the document looks at the image's head.
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    makers = {Format.DOCX: lambda: in_docx(image), Format.PPTX: lambda: in_pptx(image)}
    content = makers[form]() if form in makers else in_pdf(SIDE)
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    extracted = await extractor.extract(form, content)
    assert "Words beside the image." in "".join(page.text for page in extracted.pages)
    assert time.monotonic() - started < 60
    assert psutil.Process().memory_info().rss - before < 64 * _MIB


def test_a_decoder_unpacks_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin, much smaller: a few kilobytes become thousands of times as much where one decodes them."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    small = png(6_000)
    with PIL.Image.open(io.BytesIO(small)) as opened:
        pixels = opened.convert("L").tobytes()
    assert len(pixels) > 1_000 * len(small)
