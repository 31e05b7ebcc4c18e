"""A web site: an index that links to pages, robots.txt, a sitemap."""

from __future__ import annotations

from urllib.parse import quote

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.web import WebType
from tests.ingest.sources.servers.https import Reply, Request
from tests.ingest.sources.servers.world import World


class WebWorld(World):
    """Documents are pages; each links to the next, the start to the first."""

    kind = "web"
    host = "site.test"
    token = ""

    def start(self) -> None:
        self.robots = "User-agent: *\nDisallow: /private"
        self.more: dict[str, Reply] = {}

    def source_type(self, timing: Timing, limits: RetryLimits) -> WebType:
        return WebType(timing=timing, limits=limits)

    def settings(self) -> dict[str, object]:
        return {"start_urls": [f"{self.base}/"], "depth": 20}

    def other_settings(self) -> dict[str, object]:
        return {"start_urls": [f"{self.base}/else"]}

    def title(self, name: str) -> str:
        return quote(name)

    def answer(self, request: Request) -> Reply | None:
        path = request.path
        if path in self.more:
            return self.more[path]
        if path == "/robots.txt":
            return Reply(200, {"content-type": "text/plain"}, self.robots.encode())
        names = sorted(self.documents)
        if path == "/":
            first = f'<a href="/{quote(names[0])}">first</a> <a href="/private/x">no</a>' if names else ""
            return page(f"<meta name=robots content=noindex> {first}")
        name = path.removeprefix("/")
        if name not in names:
            return None
        following = names[names.index(name) + 1 :][:1]
        links = "".join(f"<a href='/{quote(other)}#part'>next</a>" for other in following)
        return page(f"<p>{self.documents[name].decode()}</p>{links}<a href=https://elsewhere.test/>out</a>")


def page(body: str, **headers: str) -> Reply:
    return Reply(
        200, {"content-type": "text/html; charset=utf-8", **headers}, f"<html>{body}</html>".encode()
    )
