"""Every format that is accepted, read in the real sandbox; and the same damaged, locked or empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.errors import InvalidArgument
from services.ingest.extract.formats import PLAIN, TEXTUAL, Format, sniff
from services.ingest.extract.plain import extract_plain
from services.ingest.extract.process import ExtractionLimits, Extractor
from services.ingest.extract.wire import Extracted
from tests.ingest.samples.compound import doc, ppt, xls
from tests.ingest.samples.documents import HONEY, SAMPLES, WAX, open_document, zipped

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "ingest.md"
BINARY = sorted(frozenset(Format) - TEXTUAL, key=lambda form: form.name)
_EMPTY = {
    Format.XLS: xls("", []),
    Format.PPT: ppt([]),
    Format.ODT: open_document("text", ""),
    Format.RTF: rb"{\rtf1\ansi }",
    Format.HTML: b"<html><body></body></html>",
    Format.XML: b" \n ",
    Format.CSV: b"\n\n",
    Format.EML: b"\n\n",
}


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    """The real parser in the real sandbox."""
    made = Extractor(ExtractionLimits(), workers=2)
    yield made
    await made.close()


async def read(extractor: Extractor, form: Format, content: bytes) -> Extracted:
    """What the service does with a document of a format."""
    if form in PLAIN:
        return extract_plain(content, markdown=form is Format.MARKDOWN)
    return await extractor.extract(form, content)


async def reason(extractor: Extractor, form: Format, content: bytes) -> str:
    """Why a document is refused; nothing if it is read."""
    try:
        await read(extractor, form, content)
    except InvalidArgument as error:
        return error.reason
    return ""


async def test_every_format_gives_its_words(extractor: Extractor) -> None:
    assert set(SAMPLES) == set(Format)

    async def look(form: Format) -> None:
        extracted = await read(extractor, form, SAMPLES[form])
        text = "\n".join(page.text for page in extracted.pages)
        assert WAX in text, form
        assert HONEY in text, form

    await asyncio.gather(*(look(form) for form in Format))


def test_every_format_is_told_by_its_type_and_the_binary_ones_by_their_content() -> None:
    for form, content in SAMPLES.items():
        assert sniff(form.value, "", content) is form
        if form not in TEXTUAL:
            assert sniff("", "no ending", content) is form


async def test_damaged_documents_are_refused_by_reason_and_never_hang(extractor: Extractor) -> None:
    """E20: cut in half, and with a hole in the middle."""
    allowed = {"DOCUMENT_BROKEN", "DOCUMENT_EMPTY", "DOCUMENT_REFUSED"}

    async def look(form: Format) -> None:
        content = SAMPLES[form]
        half = len(content) // 2
        assert await reason(extractor, form, content[:half]) in allowed, form
        hole = content[:half] + bytes(64) + content[half + 64 :]
        # A hole may lie where nothing was read.
        assert await reason(extractor, form, hole) in allowed | {""}, form

    await asyncio.gather(*(look(form) for form in BINARY))


async def test_documents_under_a_password_say_so(extractor: Extractor) -> None:
    locked = open_document("text", "<text:p>a</text:p>", "<manifest:encryption-data/>")
    for form, content in (
        (Format.DOC, doc("secret", locked=True)),
        (Format.XLS, xls("a", [["secret"]], locked=True)),
        (Format.PPT, ppt(["secret"], locked=True)),
        (Format.ODT, locked),
    ):
        assert await reason(extractor, form, content) == "DOCUMENT_ENCRYPTED", form


async def test_documents_without_words_are_empty(extractor: Extractor) -> None:
    async def look(form: Format) -> None:
        assert await reason(extractor, form, _EMPTY[form]) == "DOCUMENT_EMPTY", form

    await asyncio.gather(*(look(form) for form in _EMPTY))


def test_an_older_office_file_within_another_does_not_make_it_one() -> None:
    """E23: the name or the declared type chooses among what the content can be, and nothing else."""
    both = doc("words") + xls("a", [["b"]])
    assert sniff("", "report.xls", both) is Format.XLS
    assert sniff("", "report", both) is Format.DOC
    assert sniff(Format.XLS.value, "report.doc", both) is Format.XLS
    for declared, name in ((Format.PPT.value, "a.ppt"), (Format.PDF.value, "a.pdf"), ("text/plain", "a.txt")):
        with pytest.raises(InvalidArgument):
            sniff(declared, name, both)
    with pytest.raises(InvalidArgument):
        sniff("", "a.rtf", b"no markup at all")
    with pytest.raises(InvalidArgument):
        sniff("", "a.odp", zipped({"mimetype": "application/vnd.oasis.opendocument.presentation"}))


def test_the_documentation_lists_every_format() -> None:
    table = DOCUMENTATION.read_text(encoding="utf-8")
    for form in Format:
        assert f"`{form.value}`" in table, form
