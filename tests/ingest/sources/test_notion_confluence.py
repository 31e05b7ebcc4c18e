"""Notion's pages as text, and who may see pages of Notion and Confluence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.ingest.sources.answers import Row
from services.ingest.sources.contract import ItemGone, Principals, SourceAnswerInvalid
from services.ingest.sources.notion_text import block_line
from tests.ingest.sources.opening import Opened, items, listed, opened, unread
from tests.ingest.sources.servers.confluence import ConfluenceWorld, readers
from tests.ingest.sources.servers.https import Reply, Tls, json_reply
from tests.ingest.sources.servers.notion import DATABASE, NotionWorld


@pytest.fixture
async def notion(tls: Tls) -> AsyncIterator[Opened]:
    async with opened(NotionWorld(), tls) as found:
        found.fill(["Plan", "Notes"])
        yield found


@pytest.fixture
async def confluence(tls: Tls) -> AsyncIterator[Opened]:
    async with opened(ConfluenceWorld(), tls) as found:
        found.fill(["Plan"])
        yield found


async def test_a_notion_page_is_its_properties_and_blocks_in_order(notion: Opened) -> None:
    found = {item.name: item for item in items(await listed(notion.source())).values()}
    text = (await notion.source().fetch(found["Plan"])).content.decode()
    assert text.split("\n\n") == [
        "# Plan", "Stage: Done", "When: 2026-05-01", "first line of Plan", "- more", "  words of Plan",
    ]  # fmt: skip


async def test_a_published_notion_page_is_public_and_others_are_the_workspaces(notion: Opened) -> None:
    assert isinstance(notion.world, NotionWorld)
    notion.world.public.add("Plan")
    found = {item.name: item.principals for item in items(await listed(notion.source())).values()}
    assert found == {"Plan": None, "Notes": ("notion:workspace:ws-1",)}


async def test_a_notion_database_that_is_not_shared_is_told(notion: Opened) -> None:
    missing = DATABASE.replace("1", "9")
    batches = await listed(notion.source(settings={"databases": [missing, DATABASE]}))
    assert [problem.id for problem in unread(batches)] == [missing]
    assert len(items(batches)) == 2


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"type": "heading_2", "heading_2": {"rich_text": [{"plain_text": "H"}]}}, "## H"),
        ({"type": "to_do", "to_do": {"rich_text": [{"plain_text": "T"}], "checked": True}}, "- [x] T"),
        ({"type": "code", "code": {"rich_text": [{"plain_text": "c"}], "language": "c"}}, "```\nc\n```"),
        (
            {"type": "table_row", "table_row": {"cells": [[{"plain_text": "a"}], [{"plain_text": "b"}]]}},
            "a | b",
        ),
        ({"type": "bookmark", "bookmark": {"url": "https://x.test"}}, "https://x.test"),
        ({"type": "image", "image": {"caption": [{"plain_text": "cap"}]}}, "cap"),
        ({"type": "divider", "divider": {}}, ""),
        ({"type": "unsupported"}, ""),
        ({"type": "paragraph", "paragraph": {"rich_text": "no list"}}, ""),
    ],
)
def test_a_notion_block_is_a_line(block: dict[str, Any], line: str) -> None:
    assert block_line(Row(block), 0) == line


@pytest.mark.parametrize(
    ("own", "above", "principals"),
    [
        (readers([], []), readers([], []), ("confluence:space:ENG",)),
        (readers(["u1"], ["g1"]), readers([], []), ("confluence:group:g1", "confluence:user:u1")),
        (readers([], []), readers(["u1"], []), ("confluence:user:u1",)),
        (readers(["u1", "u2"], []), readers(["u2", "u3"], ["g1"]), ("confluence:user:u2",)),
        (readers(["u1"], []), readers(["u2"], []), ()),
    ],
)
async def test_a_confluence_page_is_restricted_by_all_above_it(
    confluence: Opened, own: dict[str, Any], above: dict[str, Any], principals: Principals
) -> None:
    assert isinstance(confluence.world, ConfluenceWorld)
    confluence.world.restrictions["Plan"] = own
    confluence.world.above["Plan"] = above
    (item,) = items(await listed(confluence.source())).values()
    assert item.principals == principals


async def test_restrictions_that_are_not_told_are_never_taken_for_none(confluence: Opened) -> None:
    """Twin of the above: an answer without the expansion must not make a page everybody's."""
    assert isinstance(confluence.world, ConfluenceWorld)
    confluence.world.above["Plan"] = {}
    with pytest.raises(SourceAnswerInvalid):
        await listed(confluence.source())


async def test_a_grant_for_several_sites_asks_which(confluence: Opened) -> None:
    assert isinstance(confluence.world, ConfluenceWorld)
    confluence.world.sites.append({"id": "c2", "url": "https://b.atlassian.test", "name": "b", "scopes": []})
    with pytest.raises(InvalidArgument):
        await listed(confluence.source(settings={"site": ""}))
    with pytest.raises(ItemGone):
        await listed(confluence.source(settings={"site": "c.atlassian.test"}))


@pytest.mark.parametrize(
    "link", ["https://elsewhere.test/", "//elsewhere.test/", "@elsewhere.test/", "../../x"]
)
async def test_a_next_page_elsewhere_is_refused(confluence: Opened, link: str) -> None:
    """E3."""
    confluence.server.faults = [
        json_reply([{"id": "cloud-1", "url": "https://acme.atlassian.test"}]),
        json_reply({"results": [], "_links": {"next": link}}),
        Reply(500),
    ]
    with pytest.raises(SourceAnswerInvalid):
        await listed(confluence.source())
    assert len(confluence.server.requests) == 2
