"""Builds the example documents of binary formats from their sources, the same bytes each time.

`python examples/build_documents.py [FOLDER]` reads examples/sources and writes PDF, DOCX, PPTX and
XLSX into examples/documents (or FOLDER). Needs the development set-up; the results are committed.
"""

from __future__ import annotations

import datetime as dt
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import docx
import openpyxl
import pptx
from reportlab.lib.pagesizes import A5
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import ListFlowable, ListItem, Paragraph, SimpleDocTemplate

_HERE = Path(__file__).resolve().parent
_MADE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).replace(tzinfo=None)
_AUTHOR = "The Sealcomb project"


def build(folder: Path) -> list[Path]:
    """Builds every document into the folder; returns their paths."""
    made = {
        "leaked-key-runbook.pdf": _pdf(_source("leaked-key-runbook.md")),
        "honey-harvest.pdf": _pdf(_source("honey-harvest.md")),
        "team-handbook.docx": _docx(_source("team-handbook.md")),
        "customer-onboarding.pptx": _pptx(_source("customer-onboarding.md")),
        "beekeeping-calendar.xlsx": _xlsx(_source("beekeeping-calendar.tsv")),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in made]


def _source(name: str) -> str:
    return (_HERE / "sources" / name).read_text(encoding="utf-8")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """The kind (title, heading, bullet, paragraph) and the text of each line that is not empty."""
    for line in text.splitlines():
        for mark, kind in (("## ", "heading"), ("# ", "title"), ("- ", "bullet"), ("", "paragraph")):
            if line.startswith(mark) and line.strip():
                yield kind, line.removeprefix(mark)
                break


def _pdf(text: str) -> bytes:
    styles = getSampleStyleSheet()
    looks = {"title": "Title", "heading": "Heading2", "paragraph": "BodyText", "bullet": "BodyText"}
    story = []
    for kind, line in _lines(text):
        paragraph = Paragraph(line.replace("&", "&amp;"), styles[looks[kind]])
        story.append(
            ListFlowable([ListItem(paragraph)], bulletType="bullet") if kind == "bullet" else paragraph
        )
    out = io.BytesIO()
    title = next(line for kind, line in _lines(text) if kind == "title")
    # invariant: no time and no random document id.
    SimpleDocTemplate(out, pagesize=A5, title=title, author=_AUTHOR, invariant=1).build(story)
    return out.getvalue()


def _docx(text: str) -> bytes:
    document = docx.Document()
    looks = {"title": "Title", "heading": "Heading 1", "paragraph": "Normal", "bullet": "List Bullet"}
    for kind, line in _lines(text):
        document.add_paragraph(line, style=looks[kind])
    _stamp(document.core_properties)
    out = io.BytesIO()
    document.save(out)
    return _same_zip(out.getvalue())


def _pptx(text: str) -> bytes:
    deck = pptx.Presentation()
    for number, slide_text in enumerate(text.split("\n---\n")):
        lines = list(_lines(slide_text))
        slide = deck.slides.add_slide(deck.slide_layouts[0 if number == 0 else 1])
        slide.shapes.title.text = lines[0][1]
        slide.placeholders[1].text = "\n".join(line for _kind, line in lines[1:])
    _stamp(deck.core_properties)
    out = io.BytesIO()
    deck.save(out)
    return _same_zip(out.getvalue())


def _xlsx(text: str) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for block in text.strip().split("# ")[1:]:
        name, *rows = block.strip().splitlines()
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append([float(cell) if _is_number(cell) else cell for cell in row.split("\t")])
    book.properties.creator = _AUTHOR
    book.properties.created = book.properties.modified = _MADE
    out = io.BytesIO()
    book.save(out)
    return _same_zip(out.getvalue(), keep_modified=False)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _stamp(properties: object) -> None:
    for name, value in (
        ("author", _AUTHOR),
        ("created", _MADE),
        ("modified", _MADE),
        ("last_modified_by", _AUTHOR),
    ):
        setattr(properties, name, value)


def _same_zip(raw: bytes, *, keep_modified: bool = True) -> bytes:
    """The same archive without the times of its making."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "docProps/core.xml" and not keep_modified:
                content = _without_modified(content)
            entry = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(entry, content)
    return out.getvalue()


def _without_modified(core: bytes) -> bytes:
    # openpyxl writes the present time whatever it was told.
    head, _, rest = core.partition(b"<dcterms:modified")
    if not rest:
        return core
    return head + rest.partition(b"</dcterms:modified>")[2]


if __name__ == "__main__":
    for path in build(Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE / "documents"):
        sys.stdout.write(f"{path.name} {path.stat().st_size}\n")
