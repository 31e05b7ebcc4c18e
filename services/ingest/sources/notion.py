"""Notion: the pages that the user has shared, those of databases among them.

From Notion's API reference (developers.notion.com/reference, Notion-Version 2022-06-28): search,
query a database, retrieve block children, users/me, request limits (429 with Retry-After), and
its OAuth (Basic auth and JSON at the token endpoint; v1/oauth/revoke). Notion tells neither what was
deleted nor who may see a page, so every listing is a full one, and a page that is not published is
the workspace's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from services.common.errors import invalid
from services.ingest.egress.client import Egress
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import Row, cut, read_row, web_address
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    Batch,
    Change,
    Credential,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    SourceDenied,
    SourceSettings,
    Unread,
)
from services.ingest.sources.cursors import CursorState, read_cursor, write_cursor
from services.ingest.sources.notion_text import block_line, page_title, property_lines

_VERSION = "2022-06-28"
_BLOCKS_MAX = 20_000
_DEPTH_MAX = 12
# Subpages and databases are items of their own.
_OTHER_ITEMS = frozenset({"child_page", "child_database"})

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F-]{32,36}$")]


class NotionSettings(SourceSettings):
    """What of a workspace to take in."""

    # Databases whose pages to take; empty: every page that is shared with the connection.
    databases: tuple[Id, ...] = Field(default=(), max_length=100)


class _State(CursorState):
    """Where the listing is: the database, if databases are named, and Notion's cursor in it."""

    database: int = 0
    page: str = ""
    workspace: str = ""


class NotionType:
    """Notion."""

    kind: ClassVar[str] = "notion"
    title: ClassVar[str] = "Notion"
    token_form: ClassVar[str] = "an integration's token"  # noqa: S105  # a description
    settings_model: ClassVar[type[SourceSettings]] = NotionSettings

    def __init__(
        self,
        api_url: str = "https://api.notion.com",
        *,
        timing: Timing | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._timing = timing
        self._limits = limits
        # What it may read is chosen by the integration's capabilities, not by scopes.
        self.oauth: OAuthProfile | None = OAuthProfile(
            authorize_url=f"{self._api_url}/v1/oauth/authorize",
            token_url=f"{self._api_url}/v1/oauth/token",
            revoke_url=f"{self._api_url}/v1/oauth/revoke",
            scopes=(),
            client_auth="client_secret_basic",
            token_request="json",  # noqa: S106  # a format
            pkce_documented=False,
            revocation="notion",
            refresh="rotating",
            authorize_parameters={"owner": "user"},
        )

    def hosts(self, settings: NotionSettings) -> tuple[str, ...]:
        """The API's host."""
        return (parse_url(self._api_url).netloc,)

    def open(self, settings: NotionSettings, credential: Credential | None, egress: Egress) -> NotionSource:
        """A source for one job."""
        if credential is None:
            raise invalid("credential", "Notion needs a token")
        calls = Calls(
            egress,
            name=self.title,
            hosts=self.hosts(settings),
            credential=credential,
            headers={"notion-version": _VERSION},
            timing=self._timing,
            limits=self._limits,
        )
        return NotionSource(f"{self._api_url}/v1", settings, calls)


class NotionSource:
    """See Source."""

    kind = NotionType.kind

    def __init__(self, api_url: str, settings: NotionSettings, calls: Calls) -> None:
        self._api_url = api_url
        self._settings = settings
        self._calls = calls

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Every page, each time."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        if not state.workspace:
            state = state.model_copy(update={"workspace": await self._workspace()})
        listings = self._settings.databases or ("",)
        while state.database < len(listings):
            database = listings[state.database]
            try:
                page = read_row(await self._calls.post_json(*self._listing(database, state.page)))
            except (ItemGone, SourceDenied) as error:
                state = state.model_copy(update={"database": state.database + 1, "page": ""})
                yield Batch((Unread(database, database, error),), write_cursor(self._settings, state))
                continue
            changes = tuple(_item(row, state.workspace) for row in page.rows("results") if _is_page(row))
            following = page.text_or("next_cursor") if page.flag("has_more") else ""
            state = state.model_copy(
                update={"page": following, "database": state.database + (0 if following else 1)}
            )
            yield Batch(changes, write_cursor(self._settings, state))
        yield Batch((), write_cursor(self._settings, _State()), complete=True, full=True)

    async def fetch(self, item: Item) -> Fetched:
        """A page's properties and blocks as Markdown."""
        page = read_row(await self._calls.send(f"{self._api_url}/pages/{item.id}"))
        if not _is_page(page):
            raise ItemGone("the page is in the trash")
        lines = [f"# {page_title(page)}", *property_lines(page)]
        left = [_BLOCKS_MAX]
        async for line in self._blocks(item.id, 0, left):
            lines.append(line)
        return Fetched(
            "\n\n".join(line for line in lines if line).encode("utf-8", "replace"),
            "text/markdown",
            {"edited": page.text_or("last_edited_time"), "created": page.text_or("created_time")},
        )

    async def _blocks(self, block_id: str, depth: int, left: list[int]) -> AsyncIterator[str]:
        following = ""
        while True:
            parameters = {"page_size": "100"} | ({"start_cursor": following} if following else {})
            page = read_row(
                await self._calls.send(f"{self._api_url}/blocks/{block_id}/children", parameters=parameters)
            )
            for block in page.rows("results"):
                left[0] -= 1
                yield block_line(block, depth)
                deeper = block.flag("has_children") and block.text_or("type") not in _OTHER_ITEMS
                if deeper and depth < _DEPTH_MAX and left[0] > 0:
                    async for line in self._blocks(block.text("id"), depth + 1, left):
                        yield line
            following = page.text_or("next_cursor") if page.flag("has_more") else ""
            if not following or left[0] <= 0:
                return

    async def _workspace(self) -> str:
        me = read_row(await self._calls.send(f"{self._api_url}/users/me"))
        bot = me.row_or_none("bot")
        return (bot.text_or("workspace_id") if bot else "") or me.text("id")

    def _listing(self, database: str, page: str) -> tuple[str, dict[str, object]]:
        body: dict[str, object] = {"page_size": 100} | ({"start_cursor": page} if page else {})
        if database:
            return f"{self._api_url}/databases/{database}/query", body
        body["filter"] = {"property": "object", "value": "page"}
        # Oldest change first: what changes meanwhile moves to the end, never behind the cursor.
        body["sort"] = {"timestamp": "last_edited_time", "direction": "ascending"}
        return f"{self._api_url}/search", body


def _is_page(row: Row) -> bool:
    return row.text_or("object") == "page" and not row.flag("archived") and not row.flag("in_trash")


def _item(row: Row, workspace: str) -> Change:
    public = web_address(row.text_or("public_url"))
    return Item(
        id=row.text("id"),
        name=cut(page_title(row)),
        version=row.text("last_edited_time"),
        url=web_address(row.text_or("url")),
        content_type="text/markdown",
        principals=None if public else (f"notion:workspace:{workspace}",),
    )
