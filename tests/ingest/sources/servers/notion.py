"""Notion's API of version 2022-06-28, in the shapes of its reference."""

from __future__ import annotations

import re
import uuid
from typing import Any

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.notion import NotionType
from tests.ingest.sources.servers.https import Reply, Request, json_reply
from tests.ingest.sources.servers.world import World, page_of

DATABASE = "11111111-2222-3333-4444-555555555555"


class NotionWorld(World):
    """A workspace. A document's lines are paragraphs, the last one nested under a toggle."""

    kind = "notion"
    host = "api.notion.test"

    def start(self) -> None:
        self.edits: dict[str, str] = {}
        self.public: set[str] = set()
        self.times = 0

    def put(self, name: str, content: bytes) -> None:
        super().put(name, content)
        self.times += 1
        self.edits[name] = f"2026-05-01T00:{self.times:02}:00.000Z"

    @staticmethod
    def id_of(name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def source_type(self, timing: Timing, limits: RetryLimits) -> NotionType:
        return NotionType(self.base, timing=timing, limits=limits)

    def other_settings(self) -> dict[str, object]:
        return {"databases": [DATABASE]}

    def answer(self, request: Request) -> Reply | None:
        if request.headers.get("notion-version") != "2022-06-28":
            return json_reply({"object": "error", "code": "missing_version"}, 400)
        path = request.path.removeprefix("/v1/")
        if path == "users/me":
            return json_reply(
                {"object": "user", "id": "bot-1", "type": "bot", "bot": {"workspace_id": "ws-1"}}
            )
        if path in ("search", f"databases/{DATABASE}/query") and request.method == "POST":
            names = sorted(self.documents, key=lambda name: self.edits[name])
            return self._list([self._page(name) for name in names], request.json.get("start_cursor", ""))
        found = re.fullmatch(r"(pages|blocks)/([0-9a-f-]{36}|toggle-.*?)(/children)?", path)
        if found is None:
            return None
        nested = found[2].startswith("toggle-")
        wanted = found[2].removeprefix("toggle-")
        name = next((name for name in self.documents if self.id_of(name) == wanted), None)
        if name is None:
            return json_reply({"object": "error", "code": "object_not_found"}, 404)
        if found[1] == "pages":
            return json_reply(self._page(name))
        return self._list(self._blocks(name, nested), request.query.get("start_cursor", ""))

    def _page(self, name: str) -> dict[str, Any]:
        return {
            "object": "page",
            "id": self.id_of(name),
            "last_edited_time": self.edits[name],
            "created_time": "2026-01-01T00:00:00.000Z",
            "archived": False,
            "in_trash": False,
            "url": f"https://notion.test/{self.id_of(name)}",
            "public_url": f"https://notion.test/p/{name}" if name in self.public else None,
            "properties": {
                "Name": {"type": "title", "title": [{"type": "text", "plain_text": name}]},
                "Stage": {"type": "select", "select": {"name": "Done"}},
                "When": {"type": "date", "date": {"start": "2026-05-01", "end": None}},
                "Empty": {"type": "number", "number": None},
            },
        }

    def _blocks(self, name: str, nested: bool) -> list[dict[str, Any]]:
        *lines, last = self.documents[name].decode().split("\n")
        if nested:
            return [paragraph("inner", last)]
        toggle = {
            "object": "block",
            "id": f"toggle-{self.id_of(name)}",
            "type": "toggle",
            "has_children": True,
        }
        toggle["toggle"] = {"rich_text": [{"plain_text": "more"}]}
        subpage = {"id": "x", "type": "child_page", "has_children": True, "child_page": {"title": "Other"}}
        return [paragraph(str(number), line) for number, line in enumerate(lines)] + [toggle, subpage]

    def _list(self, rows: list[Any], cursor: str) -> Reply:
        page, following = page_of(rows, cursor)
        return json_reply(
            {"object": "list", "results": page, "next_cursor": following or None, "has_more": bool(following)}
        )


def paragraph(block_id: str, text: str) -> dict[str, Any]:
    rich = [{"type": "text", "plain_text": text}]
    return {"id": block_id, "type": "paragraph", "has_children": False, "paragraph": {"rich_text": rich}}
