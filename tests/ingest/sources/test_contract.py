"""E3, E4, E18, E29: what every source keeps, run over all of them against servers of their vendors' APIs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.errors import InvalidArgument
from services.ingest.egress.client import EgressLimits
from services.ingest.sources.contract import (
    CredentialRefused,
    CursorExpired,
    Item,
    ItemGone,
    ItemTooLarge,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
    SourceUnavailable,
)
from services.ingest.sources.registry import source_types
from services.ingest.sources.settings import parse_settings
from tests.ingest.sources.opening import Holder, Opened, items, listed, opened, removed
from tests.ingest.sources.servers.confluence import ConfluenceWorld
from tests.ingest.sources.servers.github import GitHubWorld
from tests.ingest.sources.servers.google_drive import GoogleDriveWorld
from tests.ingest.sources.servers.https import Reply, Tls
from tests.ingest.sources.servers.notion import NotionWorld
from tests.ingest.sources.servers.s3 import S3World
from tests.ingest.sources.servers.slack import SlackWorld
from tests.ingest.sources.servers.web import WebWorld
from tests.ingest.sources.servers.webdav import WebDavWorld
from tests.ingest.sources.servers.world import World

PLAIN = ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt")
NAMES: dict[type[World], tuple[str, ...]] = {
    ConfluenceWorld: PLAIN,
    GitHubWorld: ("README.md", "docs/a b.md", "docs/ü.md", "issue 1", "issue 2", "issue 3"),
    GoogleDriveWorld: ("a.txt", "b.txt", "c.gdoc", "d.txt", "e.txt"),
    NotionWorld: PLAIN,
    S3World: ("a.txt", "b c+d.txt", "folder/ü%2F.txt", "folder/../x.txt", "z\x01\x1b[31m.txt"),
    SlackWorld: ("2026-05-01", "2026-05-02", "2026-05-03", "2026-05-04", "2026-05-05"),
    WebDavWorld: ("a.txt", "b/c d.txt", "b/e/f+g.txt", "b/e/ü%.txt", "h/#?.txt"),
    WebWorld: ("a", "b c", "d", "e/f", "ü"),
}
WITH_TOKEN = [world for world in NAMES if world is not WebWorld]
each_world = pytest.mark.parametrize("world_type", list(NAMES), ids=lambda world: world.kind)
each_world_with_a_token = pytest.mark.parametrize("world_type", WITH_TOKEN, ids=lambda world: world.kind)


@pytest.fixture
async def open_world(world_type: type[World], tls: Tls) -> AsyncIterator[Opened]:
    async with opened(world_type(), tls, limits=EgressLimits(body_bytes_max=1 << 20, timeout_s=3)) as found:
        found.fill(NAMES[world_type])
        yield found


def of(found: dict[str, Item], opened_world: Opened, name: str) -> Item:
    title = opened_world.world.title(name)
    matching = [
        item for item in found.values() if title in item.name or title.replace("issue ", "#") in item.name
    ]
    assert len(matching) == 1, (name, list(found))
    return matching[0]


@each_world
async def test_a_listing_names_everything_once_and_each_can_be_fetched(open_world: Opened) -> None:
    source = open_world.source()
    batches = await listed(source)
    found = items(batches)
    assert len(found) == len(open_world.world.documents)
    assert [batch.complete for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert batches[-1].full
    for name in open_world.world.documents:
        item = of(found, open_world, name)
        assert item.version
        assert item.url.startswith("https://")
        fetched = await source.fetch(item)
        assert f"words of {name}" in fetched.content.decode()
        assert fetched.content_type
        assert "words" not in repr(fetched)


@each_world
async def test_without_changes_every_version_stays(open_world: Opened) -> None:
    before = items(await listed(open_world.source()))
    after = items(await listed(open_world.source()))
    assert before == after


@each_world
async def test_from_every_cursor_the_rest_is_listed(open_world: Opened) -> None:
    batches = await listed(open_world.source())
    everything = items(batches)
    for number, batch in enumerate(batches[:-1]):
        rest = await listed(open_world.source(), batch.cursor)
        assert rest[-1].full
        assert items(batches[: number + 1]) | items(rest) == everything


@each_world
async def test_changes_and_removals_are_seen_from_the_last_cursor(open_world: Opened) -> None:
    first = await listed(open_world.source())
    before = items(first)
    names = list(open_world.world.documents)
    open_world.world.put(names[1], f"changed words of {names[1]}".encode())
    gone = of(before, open_world, names[-1] if open_world.world.kind != "github" else names[0])
    open_world.world.remove(names[-1] if open_world.world.kind != "github" else names[0])
    second = await listed(open_world.source(), first[-1].cursor)
    after = items(second)
    assert second[-1].full is not open_world.world.incremental
    changed = of(after, open_world, names[1])
    assert changed.version != before[changed.id].version
    assert gone.id not in after
    if open_world.world.incremental:
        assert gone.id in removed(second)
    assert "changed words" in (await open_world.source().fetch(changed)).content.decode()


@each_world
async def test_an_incremental_listing_of_nothing_new_costs_few_calls(open_world: Opened) -> None:
    if not open_world.world.incremental:
        return
    cursor = (await listed(open_world.source()))[-1].cursor
    before = len(open_world.server.requests)
    batches = await listed(open_world.source(), cursor)
    assert batches[-1].complete
    assert not batches[-1].full
    assert len(open_world.server.requests) - before <= 12


@each_world
async def test_a_cursor_of_other_settings_or_of_no_listing_begins_again(open_world: Opened) -> None:
    cursor = (await listed(open_world.source()))[-1].cursor
    other = open_world.world.other_settings()
    cases: list[tuple[bytes, dict[str, object]]] = [
        (cursor, other),
        (b"", {}),
        (b"\0" * 99, {}),
        (cursor[:-9], {}),
    ]
    for bad, settings in cases:
        with pytest.raises(CursorExpired):
            await listed(open_world.source(settings=settings), bad)


@each_world_with_a_token
async def test_a_refused_token_is_replaced_once(open_world: Opened) -> None:
    holder = Holder(["expired-token:of-the-canary", open_world.world.token])
    assert len(items(await listed(open_world.source(holder)))) == len(open_world.world.documents)
    assert holder.refusals == 1


@each_world_with_a_token
async def test_a_token_that_stays_refused_ends_the_work(open_world: Opened) -> None:
    holder = Holder(["bad-token:of-the-canary"] * 9)
    with pytest.raises(CredentialRefused) as caught:
        await listed(open_world.source(holder))
    assert holder.refusals == 1
    assert "canary" not in str(caught.value)
    assert open_world.clock.slept == []


@each_world_with_a_token
@pytest.mark.parametrize("token", ["a\r\nx-evil: b:c", "a\x00b:c", "ü :b", "a b\n:c", ""])
async def test_a_token_with_characters_that_tokens_do_not_have_is_sent_nowhere(
    open_world: Opened, token: str
) -> None:
    if open_world.world.kind == "webdav" and ":" in token:
        return  # whatever it holds, base64 carries it
    with pytest.raises(CredentialRefused):
        await listed(open_world.source(Holder([token] * 3)))
    assert open_world.server.requests == []


@each_world_with_a_token
async def test_a_source_that_needs_a_credential_says_so(open_world: Opened) -> None:
    world = open_world.world
    if world.kind == "webdav":
        return
    kind = world.source_type(open_world.timing, open_world.limits)
    with pytest.raises(InvalidArgument):
        kind.open(parse_settings(kind.settings_model, world.settings()), None, open_world.egress)


@each_world
async def test_the_token_is_in_the_authorization_header_alone(open_world: Opened) -> None:
    source = open_world.source()
    batches = await listed(source)
    for item in items(batches).values():
        await source.fetch(item)
    secret = open_world.world.token.rpartition(":")[2]
    for request in open_world.server.requests:
        others = {name: value for name, value in request.headers.items() if name != "authorization"}
        if secret:
            assert secret not in request.target + str(others) + request.content.decode()
    assert not secret or secret not in repr(batches) + repr(vars(source))
    assert not secret or all(secret.encode() not in batch.cursor for batch in batches)


@each_world
async def test_a_limit_is_waited_for_as_the_source_says(open_world: Opened) -> None:
    open_world.server.faults = [Reply(429, {"retry-after": "7"}), Reply(503, {"retry-after": "3"})]
    assert len(items(await listed(open_world.source()))) == len(open_world.world.documents)
    assert open_world.clock.slept[:2] == [7.0, 3.0]


@each_world
async def test_a_long_wait_is_left_to_the_job(open_world: Opened) -> None:
    open_world.server.faults = [Reply(429, {"retry-after": "3600"})]
    with pytest.raises(SourceLimited) as caught:
        await listed(open_world.source())
    assert caught.value.retry_after_s == 3600.0
    assert open_world.clock.slept == []


@each_world
async def test_failures_are_tried_again_with_growing_waits_and_then_given_up(open_world: Opened) -> None:
    open_world.server.faults = [Reply(500), Reply(502), Reply(504)]
    assert len(items(await listed(open_world.source()))) == len(open_world.world.documents)
    assert open_world.clock.slept[:3] == [0.5, 1.0, 2.0]
    open_world.server.faults = [Reply(500)] * 99
    before = len(open_world.server.requests)
    with pytest.raises(SourceUnavailable):
        await listed(open_world.source())
    assert len(open_world.server.requests) - before == 5


@each_world
async def test_a_broken_off_answer_is_asked_for_again(open_world: Opened) -> None:
    open_world.server.faults = [Reply(200, {}, b"{", truncate=True)]
    assert len(items(await listed(open_world.source()))) == len(open_world.world.documents)


@each_world_with_a_token
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>maintenance</html>", b"[1]", b"{}", b"[" * 100_000, b'{"ok": true, "results": 5}',
     b'<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><x>&c;</x>', b"\xff\xfe"],
    ids=range(8),
)  # fmt: skip
async def test_an_answer_of_another_shape_is_an_error_of_its_own(open_world: Opened, content: bytes) -> None:
    open_world.server.faults = [Reply(200, {"content-type": "application/json"}, content)] * 9
    with pytest.raises((SourceAnswerInvalid, CursorExpired, ItemGone)):
        await listed(open_world.source())


@each_world
@pytest.mark.parametrize(("status", "error"), [(403, SourceDenied), (404, ItemGone), (410, ItemGone)])
async def test_an_item_that_is_denied_or_gone_says_so(
    open_world: Opened, status: int, error: type[Exception]
) -> None:
    found = items(await listed(open_world.source()))
    open_world.server.faults = [Reply(status)] * 2
    with pytest.raises(error):
        await open_world.source().fetch(next(iter(found.values())))


@each_world
async def test_an_item_larger_than_the_limit_is_refused_while_others_work(open_world: Opened) -> None:
    source = open_world.source()
    found = items(await listed(source))
    # The content as such is too large, whatever call brings it.
    large = "x" * (2 << 20)
    name = next(iter(open_world.world.documents))
    if open_world.world.kind in ("confluence", "google_drive", "s3", "webdav"):
        open_world.world.documents[name] = large.encode()
        with pytest.raises(ItemTooLarge):
            await source.fetch(of(found, open_world, name))
        other = of(found, open_world, list(open_world.world.documents)[1])
        assert (await source.fetch(other)).content


@each_world
async def test_a_silent_server_ends_in_bounded_time(world_type: type[World], tls: Tls) -> None:
    async with opened(world_type(), tls, limits=EgressLimits(timeout_s=0.1)) as found:
        found.server.faults = [Reply(delay_s=30)] * 9
        async with asyncio.timeout(5):
            with pytest.raises(SourceUnavailable):
                await listed(found.source())


@each_world
async def test_an_id_of_nothing_is_gone(open_world: Opened) -> None:
    source = open_world.source()
    item = next(iter(items(await listed(source)).values()))
    for bad in ("nothing", "../../x"):
        id_ = f"{open_world.world.base}/{bad.strip('./')}" if open_world.world.kind == "web" else bad
        with pytest.raises((ItemGone, SourceAnswerInvalid, SourceDenied)):
            await source.fetch(Item(id_, "", item.version, ""))


def test_every_kind_is_offered_and_says_what_it_needs() -> None:
    types = source_types()
    assert sorted(types) == sorted(world.kind for world in NAMES)
    for kind in types.values():
        assert kind.settings_model.model_json_schema()["properties"]
        assert kind.title
        if kind.oauth is not None:
            assert all("." in host for host in kind.oauth.hosts)
            assert kind.oauth.authorize_url.startswith("https://")
    assert source_types({"github": "https://git.example/api/v3"})["github"].oauth is not None
    with pytest.raises(ValueError, match="web"):
        source_types({"web": "https://x.example"})


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        ("github", {}, "settings.repositories"),
        ("github", {"repositories": ["../etc"]}, "settings.repositories[0]"),
        ("github", {"repositories": ["a/b"], "token": "x"}, "settings.token"),
        ("google_drive", {"folders": ["a' or '1"]}, "settings.folders[0]"),
        ("notion", {"databases": ["../x"]}, "settings.databases[0]"),
        ("confluence", {"spaces": ['A") or ("']}, "settings.spaces[0]"),
        ("slack", {"lookback_days": 0}, "settings.lookback_days"),
        ("s3", {"endpoint": "http://s3.example", "bucket": "abc"}, "settings.endpoint"),
        ("s3", {"endpoint": "https://u:p@s3.example", "bucket": "abc"}, "settings.endpoint"),
        ("s3", {"endpoint": "https://s3.example", "bucket": "a/../b"}, "settings.bucket"),
        ("webdav", {"url": "https://0x7f.1/"}, "settings.url"),
        ("web", {"start_urls": ["file:///etc/passwd"]}, "settings.start_urls"),
        ("web", {"start_urls": [], "depth": 99}, "settings.start_urls"),
    ],
)
def test_bad_settings_name_their_field(kind: str, values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_settings(source_types()[kind].settings_model, values)
    assert field in [violation.field for violation in caught.value.fields]
