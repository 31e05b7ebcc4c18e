"""Confluence Cloud behind api.atlassian.com, in the shapes of its REST references."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.confluence import ConfluenceType
from tests.ingest.sources.servers.https import Reply, Request, json_reply
from tests.ingest.sources.servers.world import World, hash_of, page_of

CLOUD = "cloud-1"


def readers(users: list[str], groups: list[str]) -> dict[str, Any]:
    return {
        "read": {
            "operation": "read",
            "restrictions": {
                "user": {"results": [{"accountId": user} for user in users], "size": len(users)},
                "group": {"results": [{"name": group} for group in groups], "size": len(groups)},
            },
        }
    }


class ConfluenceWorld(World):
    """A site with one space."""

    kind = "confluence"
    host = "api.atlassian.test"

    def start(self) -> None:
        self.versions: dict[str, int] = {}
        self.restrictions: dict[str, dict[str, Any]] = {}
        self.above: dict[str, dict[str, Any]] = {}
        self.sites = [{"id": CLOUD, "url": "https://acme.atlassian.test", "name": "acme", "scopes": []}]

    def put(self, name: str, content: bytes) -> None:
        super().put(name, content)
        self.versions[name] = self.versions.get(name, 0) + 1

    @staticmethod
    def id_of(name: str) -> str:
        return str(int(hash_of(name.encode())[:12], 16))

    def source_type(self, timing: Timing, limits: RetryLimits) -> ConfluenceType:
        return ConfluenceType(self.base, timing=timing, limits=limits)

    def settings(self) -> dict[str, object]:
        return {"site": "acme.atlassian.test", "spaces": ["ENG"]}

    def other_settings(self) -> dict[str, object]:
        return {"spaces": ["OPS"]}

    def answer(self, request: Request) -> Reply | None:
        if request.path == "/oauth/token/accessible-resources":
            return json_reply(self.sites)
        path = request.path.removeprefix(f"/ex/confluence/{CLOUD}/wiki")
        if path == "/rest/api/content/search":
            return self._search(request)
        found = re.fullmatch(r"/api/v2/pages/(\d+)", path)
        name = next((name for name in self.documents if found and self.id_of(name) == found[1]), None)
        if name is None:
            return None
        value = f"<p>{self.documents[name].decode()}</p>"
        body = {"export_view": {"representation": "export_view", "value": value}}
        return json_reply({"id": self.id_of(name), "status": "current", "title": name, "body": body})

    def _search(self, request: Request) -> Reply:
        cql = request.query["cql"]
        if "space in" in cql and '"ENG"' not in cql:
            return json_reply({"results": [], "_links": {}})
        page, following = page_of(sorted(self.documents), request.query.get("cursor", ""))
        links = {"base": self.sites[0]["url"], "context": "/wiki"}
        if following:
            links["next"] = (
                f"/rest/api/content/search?cql={quote(cql)}&expand={request.query['expand']}&cursor={following}"
            )
        return json_reply({"results": [self._row(name) for name in page], "_links": links})

    def _row(self, name: str) -> dict[str, Any]:
        return {
            "id": self.id_of(name),
            "type": "page",
            "title": name,
            "version": {"number": self.versions[name]},
            "space": {"key": "ENG"},
            "restrictions": self.restrictions.get(name, readers([], [])),
            "ancestors": [{"id": "1", "restrictions": self.above.get(name, readers([], []))}],
            "_links": {"webui": f"/spaces/ENG/pages/{self.id_of(name)}"},
        }
