"""Notion's blocks and properties as Markdown lines, from its block and property references."""

from __future__ import annotations

from services.ingest.sources.answers import Row

_PREFIXES = {
    "heading_1": "# ",
    "heading_2": "## ",
    "heading_3": "### ",
    "bulleted_list_item": "- ",
    "numbered_list_item": "1. ",
    "quote": "> ",
    "toggle": "- ",
}
_ADDRESSES = frozenset({"bookmark", "embed", "link_preview"})


def plain_text(value: object) -> str:
    """A rich text's words; nothing when it is none."""
    if not isinstance(value, list):
        return ""
    parts = (entry.get("plain_text") for entry in value if isinstance(entry, dict))
    return "".join(part for part in parts if isinstance(part, str))


def page_title(page: Row) -> str:
    """The words of the property whose type is title."""
    for _, entry in _properties(page):
        if entry.text_or("type") == "title":
            return plain_text(entry.get("title"))
    return ""


def property_lines(page: Row) -> list[str]:
    """`name: value` of each property that can be put into words."""
    lines = []
    for name, entry in _properties(page):
        kind = entry.text_or("type")
        words = "" if kind == "title" else _words(entry.get(kind))
        if words:
            lines.append(f"{name}: {words}")
    return lines


def block_line(block: Row, depth: int) -> str:
    """One block, without those under it. Blocks without words give an empty line."""
    kind = block.text_or("type")
    content = block.row_or_none(kind) if isinstance(block.get(kind), dict) else None
    if content is None:
        return ""
    indent = "  " * min(depth, 8)
    if kind == "table_row":
        cells = content.get("cells")
        return indent + " | ".join(plain_text(cell) for cell in cells) if isinstance(cells, list) else ""
    if kind in _ADDRESSES:
        return indent + content.text_or("url")
    if kind == "equation":
        return indent + content.text_or("expression")
    words = plain_text(content.get("rich_text")) or plain_text(content.get("caption"))
    if not words:
        return ""
    if kind == "code":
        return f"```\n{words}\n```"
    if kind == "to_do":
        return f"{indent}- [{'x' if content.flag('checked') else ' '}] {words}"
    return indent + _PREFIXES.get(kind, "") + words


def _properties(page: Row) -> list[tuple[str, Row]]:
    value = page.get("properties")
    if not isinstance(value, dict):
        return []
    return [(name, Row(entry, "property")) for name, entry in value.items() if isinstance(entry, dict)]


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        return plain_text(value) or ", ".join(filter(None, map(_words, value)))
    if isinstance(value, dict):
        # Selects, people and files have a name, dates a start.
        return _words(value.get("name")) or _words(value.get("start"))
    return ""
