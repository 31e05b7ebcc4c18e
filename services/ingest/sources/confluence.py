"""Confluence Cloud: pages of spaces, or what a CQL query finds.

From Atlassian's developer documentation: OAuth 2.0 (3LO) apps (calls go to
api.atlassian.com/ex/confluence/{cloudId}; oauth/token/accessible-resources), REST API v1 "Search
content by CQL" with expansions, v2 "Get page by id" with body-format, and rate limiting (429 with
Retry-After). Deleted pages are not told and restrictions change no version, so every listing is a
full one. A page is restricted by its ancestors' restrictions as well as by its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, ClassVar
from urllib.parse import quote

from pydantic import Field, StringConstraints

from services.common.errors import invalid
from services.ingest.egress.client import Egress
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import Row, cut, read_json, read_row, rows, web_address
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    PRINCIPALS_MAX,
    Batch,
    Credential,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    SourceAnswerInvalid,
    SourceSettings,
)
from services.ingest.sources.cursors import CursorState, read_cursor, write_cursor

_READERS = "restrictions.read.restrictions."
_EXPAND = ",".join(
    ["version", "space"]
    + [f"{of}{_READERS}{whom}" for of in ("", "ancestors.") for whom in ("user", "group")]
)


class ConfluenceSettings(SourceSettings):
    """What of a site to take in."""

    # The site as in `example.atlassian.net`; empty where the grant is for one site alone.
    site: str = Field(default="", max_length=253, pattern=r"^[A-Za-z0-9.-]*$")
    spaces: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9~_.-]{1,255}$")], ...] = Field(
        default=(), max_length=100
    )
    # A query in Confluence's query language, to narrow the pages further.
    cql: str = Field(default="", max_length=2000)


class _State(CursorState):
    """`next` is the path of the next page of the listing."""

    cloud: str = ""
    site_url: str = ""
    next: str = ""


class ConfluenceType:
    """Confluence Cloud."""

    kind: ClassVar[str] = "confluence"
    title: ClassVar[str] = "Confluence"
    token_form: ClassVar[str] = "an OAuth access token"  # noqa: S105  # a description
    settings_model: ClassVar[type[SourceSettings]] = ConfluenceSettings

    def __init__(
        self,
        api_url: str = "https://api.atlassian.com",
        *,
        timing: Timing | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._timing = timing
        self._limits = limits
        self.oauth: OAuthProfile | None = OAuthProfile(
            authorize_url="https://auth.atlassian.com/authorize",
            token_url="https://auth.atlassian.com/oauth/token",  # noqa: S106  # an address
            scopes=("search:confluence", "read:page:confluence", "offline_access"),
            pkce_documented=False,
            # 3LO has no revocation endpoint: users remove the app in their account's settings.
            revocation="none",
            refresh="rotating",
            authorize_parameters={"audience": "api.atlassian.com", "prompt": "consent"},
        )

    def hosts(self, settings: ConfluenceSettings) -> tuple[str, ...]:
        """The API's host."""
        return (parse_url(self._api_url).netloc,)

    def open(
        self, settings: ConfluenceSettings, credential: Credential | None, egress: Egress
    ) -> ConfluenceSource:
        """A source for one job."""
        if credential is None:
            raise invalid("credential", "Confluence needs an access token")
        calls = Calls(
            egress,
            name=self.title,
            hosts=self.hosts(settings),
            credential=credential,
            headers={"accept": "application/json"},
            timing=self._timing,
            limits=self._limits,
        )
        return ConfluenceSource(self._api_url, settings, calls)


class ConfluenceSource:
    """See Source."""

    kind = ConfluenceType.kind

    def __init__(self, api_url: str, settings: ConfluenceSettings, calls: Calls) -> None:
        self._api_url = api_url
        self._settings = settings
        self._calls = calls
        self._cloud = ""

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Every page, each time."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        if not state.cloud:
            cloud, site_url = await self._site()
            state = _State(cloud=cloud, site_url=site_url, next=self._first())
        while state.next:
            page = read_row(await self._calls.send(self._wiki(state.cloud) + state.next))
            changes = tuple(_item(row, state.site_url) for row in page.rows("results"))
            links = page.row_or_none("_links")
            state = state.model_copy(update={"next": _path(links.text_or("next")) if links else ""})
            yield Batch(changes, write_cursor(self._settings, state))
        yield Batch((), write_cursor(self._settings, _State()), complete=True, full=True)

    async def fetch(self, item: Item) -> Fetched:
        """A page as the HTML that it is shown as."""
        if not self._cloud:
            self._cloud, _ = await self._site()
        url = f"{self._wiki(self._cloud)}/api/v2/pages/{quote(item.id, safe='')}?body-format=export_view"
        row = read_row(await self._calls.download(url))
        if row.text_or("status", "current") != "current":
            raise ItemGone("the page is archived or in the trash")
        body = row.row("body").row("export_view").text_or("value")
        title = row.text_or("title").replace("&", "&amp;").replace("<", "&lt;")
        html = f"<!doctype html><title>{title}</title><h1>{title}</h1>{body}"
        return Fetched(html.encode("utf-8", "replace"), "text/html", {"title": row.text_or("title")})

    async def _site(self) -> tuple[str, str]:
        answer = await self._calls.send(f"{self._api_url}/oauth/token/accessible-resources")
        sites = {row.text("url").rstrip("/"): row.text("id") for row in rows(read_json(answer))}
        wanted = self._settings.site.lower()
        found = {
            url: cloud for url, cloud in sites.items() if not wanted or url.lower() == f"https://{wanted}"
        }
        if not found:
            raise ItemGone("the grant is for no such site")
        if len(found) > 1:
            raise invalid("settings.site", "the grant is for several sites; name one")
        ((url, cloud),) = found.items()
        return cloud, url

    def _first(self) -> str:
        spaces = ", ".join(f'"{space}"' for space in self._settings.spaces)
        query = "type = page" + (f" and space in ({spaces})" if spaces else "")
        if self._settings.cql:
            query += f" and ({self._settings.cql})"
        return f"/rest/api/content/search?cql={quote(query)}&limit=100&expand={_EXPAND}"

    def _wiki(self, cloud: str) -> str:
        return f"{self._api_url}/ex/confluence/{quote(cloud, safe='')}/wiki"


def _path(text: str) -> str:
    """The next page's path, which is relative to the wiki. Anything else would lead elsewhere."""
    if text and not text.startswith("/rest/api/"):
        raise SourceAnswerInvalid("the source's next page is not one of its own")
    return text


def _item(row: Row, site_url: str) -> Item:
    space = row.row("space").text("key")
    links = row.row_or_none("_links")
    path = links.text_or("webui") if links else ""
    return Item(
        id=row.text("id"),
        name=cut(row.text_or("title")),
        version=str(row.row("version").number_or("number")),
        url=web_address(f"{site_url}/wiki{path}") if path else "",
        content_type="text/html",
        principals=_principals(row, space),
    )


def _principals(row: Row, space: str) -> tuple[str, ...]:
    """Who may read: those whom every restriction above and on the page names, or else the space's readers.

    A user whom one restriction names and another lets in by a group is not among them: groups are
    not opened here, so the answer errs towards fewer.
    """
    readers: set[str] | None = None
    for restricted in (row, *row.rows("ancestors")):
        named = restricted.row("restrictions").row("read").row("restrictions")
        level = {f"confluence:user:{user.text('accountId')}" for user in _results(named, "user")}
        level |= {f"confluence:group:{group.text('name')}" for group in _results(named, "group")}
        if level:
            readers = level if readers is None else readers & level
    if readers is None:
        return (f"confluence:space:{space}",)
    return tuple(sorted(readers)[:PRINCIPALS_MAX])


def _results(restrictions: Row, key: str) -> list[Row]:
    return restrictions.row(key).rows("results")
