"""Web pages and documents, from start addresses along links and sitemaps, within the hosts that were named.

From RFC 9309 (robots.txt), the sitemaps.org protocol, and what pages say in robots meta tags and the
X-Robots-Tag header. No credential is ever sent. Every crawl is a full one, and one that was cut off begins
again: versions are hashes of the content, so what was indexed is not indexed again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints, field_validator

from services.common.errors import SealcombError
from services.ingest.egress.client import Answer, Egress
from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import cut
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    Batch,
    Credential,
    CredentialRefused,
    Fetched,
    Item,
    ItemGone,
    ItemTooLarge,
    OAuthProfile,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
    SourceSettings,
    SourceUnavailable,
    Unread,
)
from services.ingest.sources.cursors import CursorState, read_cursor, write_cursor
from services.ingest.sources.pages import normal_url, read_page, read_sitemap
from services.ingest.sources.robots import NOTHING_ALLOWED, Robots, read_robots
from services.ingest.sources.settings import checked_url

AGENT = "Sealcomb"
_SITEMAPS_MAX = 50
_QUEUE_MAX = 50_000
_KEPT_BYTES_MAX = 32 * 1024 * 1024
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_DOCUMENTS = _HTML | {
    "application/pdf",
    "text/plain",
    "text/markdown",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}

Url = Annotated[str, StringConstraints(max_length=2048)]


class WebSettings(SourceSettings):
    """Where to start and how far to go."""

    start_urls: tuple[Url, ...] = Field(min_length=1, max_length=50)
    # Links away from a start address; 0: the start addresses (and sitemaps' pages) alone.
    depth: int = Field(default=3, ge=0, le=20)
    pages_max: int = Field(default=500, ge=1, le=10_000)
    sitemaps: bool = True
    delay_s: float = Field(default=0.5, ge=0.0, le=10.0)

    @field_validator("start_urls")
    @classmethod
    def _start_urls(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normal_url(checked_url(value.partition("#")[0])) for value in values)


class _State(CursorState):
    """A crawl remembers nothing."""


class WebType:
    """Web."""

    kind: ClassVar[str] = "web"
    title: ClassVar[str] = "Web"
    token_form: ClassVar[str] = ""
    settings_model: ClassVar[type[SourceSettings]] = WebSettings
    oauth: OAuthProfile | None = None

    def __init__(self, *, timing: Timing | None = None, limits: RetryLimits | None = None) -> None:
        self._timing = timing or Timing()
        self._limits = limits

    def hosts(self, settings: WebSettings) -> tuple[str, ...]:
        """None: no credential is sent."""
        return ()

    def open(self, settings: WebSettings, credential: Credential | None, egress: Egress) -> WebSource:
        """A source for one job. A credential is not used."""
        calls = Calls(egress, name="the web server", timing=self._timing, limits=self._limits)
        return WebSource(settings, calls, self._timing)


class WebSource:
    """See Source. An item's id is its address."""

    kind = WebType.kind

    def __init__(self, settings: WebSettings, calls: Calls, timing: Timing) -> None:
        self._settings = settings
        self._calls = calls
        self._timing = timing
        self._hosts = {parse_url(url).netloc for url in settings.start_urls}
        self._robots: dict[str, Robots] = {}
        # What the crawl has seen is not asked for again by the fetch that follows it.
        self._kept: OrderedDict[str, Answer] = OrderedDict()

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """One batch for each page, each time from the start."""
        if cursor is not None:
            read_cursor(self._settings, _State, cursor)
        begin = write_cursor(self._settings, _State())
        queue = deque((url, 0) for url in self._settings.start_urls)
        queue.extend([(url, 0) async for url in self._from_sitemaps()])
        queued = {url for url, _ in queue}
        named: set[str] = set()
        whole = True
        while queue and len(named) < self._settings.pages_max:
            url, depth = queue.popleft()
            try:
                change, links = await self._visit(url)
            except (SourceUnavailable, SourceLimited) as error:
                # It may well be there still, so this crawl says nothing about what is gone.
                whole = False
                yield Batch((Unread(url, cut(url), error),), begin)
                continue
            if change is not None and change.id not in named:
                named.add(change.id)
                yield Batch((change,), begin)
            for link in links if depth < self._settings.depth else ():
                if link not in queued and len(queued) < _QUEUE_MAX and self._is_inside(link):
                    queued.add(link)
                    queue.append((link, depth + 1))
        yield Batch((), begin, complete=True, full=whole)

    async def fetch(self, item: Item) -> Fetched:
        """A page as it is."""
        answer = self._kept.pop(item.id, None)
        if answer is None:
            if not self._is_inside(item.id) or not (await self._rules(item.id)).allows(
                parse_url(item.id).path
            ):
                raise SourceDenied("the site asks crawlers not to take this page")
            answer = await self._calls.download(item.id)
        return Fetched(answer.content, answer.headers.get("content-type", ""), {"url": answer.url})

    async def _visit(self, url: str) -> tuple[Item | Unread | None, tuple[str, ...]]:
        """A page and its links; nothing for what is not there, not allowed, or no document."""
        rules = await self._rules(url)
        if not rules.allows(parse_url(url).path):
            return None, ()
        await self._timing.sleep(max(self._settings.delay_s, rules.delay_s))
        try:
            answer = await self._calls.download(url)
        except (ItemGone, SourceDenied, CredentialRefused, SourceAnswerInvalid, EgressRefused):
            return None, ()
        except ItemTooLarge as error:
            return Unread(url, cut(url), error), ()
        final = normal_url(answer.url)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not self._is_inside(final) or not (await self._rules(final)).allows(parse_url(final).path):
            return None, ()
        if kind not in _DOCUMENTS:
            return None, ()
        links: tuple[str, ...] = ()
        index = "noindex" not in answer.headers.get("x-robots-tag", "").lower()
        if kind in _HTML:
            page = read_page(final, answer.content, answer.headers.get("x-robots-tag", ""))
            links, index = page.links, page.index
        if not index:
            return None, links
        self._keep(final, answer)
        item = Item(
            id=final,
            name=cut(final),
            version=hashlib.sha256(answer.content).hexdigest()[:32],
            url=final,
            content_type=kind,
            size_bytes=len(answer.content),
        )
        return item, links

    async def _rules(self, url: str) -> Robots:
        """A host's robots.txt. One that is not there allows all, one that cannot be had allows nothing."""
        netloc = parse_url(url).netloc
        if netloc not in self._robots:
            try:
                answer = await self._calls.send(f"https://{netloc}/robots.txt")
                self._robots[netloc] = read_robots(answer.content, AGENT)
            except (ItemGone, SourceDenied, CredentialRefused, SourceAnswerInvalid):
                self._robots[netloc] = Robots()
            except EgressRefused:
                self._robots[netloc] = NOTHING_ALLOWED
        return self._robots[netloc]

    async def _from_sitemaps(self) -> AsyncIterator[str]:
        if not self._settings.sitemaps:
            return
        waiting: deque[str] = deque()
        for host in sorted(self._hosts):
            url = f"https://{host}/sitemap.xml"
            waiting.extend(self._robots_sitemaps(await self._rules(url)) or (url,))
        for _ in range(_SITEMAPS_MAX):
            if not waiting:
                return
            url = waiting.popleft()
            try:
                pages, sitemaps = read_sitemap((await self._calls.send(url)).content)
            except SealcombError:
                # A sitemap is a help and no more: without it the links are followed all the same.
                continue
            waiting.extend(filter(self._is_inside, map(normal_url, sitemaps[:_SITEMAPS_MAX])))
            for page in map(normal_url, pages):
                if self._is_inside(page):
                    yield page

    def _robots_sitemaps(self, rules: Robots) -> list[str]:
        return [url for url in map(normal_url, rules.sitemaps) if self._is_inside(url)]

    def _is_inside(self, url: str) -> bool:
        return bool(url) and parse_url(url).netloc in self._hosts

    def _keep(self, url: str, answer: Answer) -> None:
        self._kept[url] = answer
        while (
            len(self._kept) > 1 and sum(len(kept.content) for kept in self._kept.values()) > _KEPT_BYTES_MAX
        ):
            self._kept.popitem(last=False)
