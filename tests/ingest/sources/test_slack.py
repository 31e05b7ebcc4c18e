"""Slack: days with their threads, who is in a channel, and what looking back finds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.ingest.sources.contract import CursorExpired, SourceLimited
from tests.ingest.sources.opening import Opened, items, listed, opened, removed, unread
from tests.ingest.sources.servers.https import Reply, Tls, json_reply
from tests.ingest.sources.servers.slack import SlackWorld


@pytest.fixture
async def slack(tls: Tls) -> AsyncIterator[Opened]:
    async with opened(SlackWorld(), tls) as found:
        found.fill(["2026-05-01", "2026-05-04"])
        yield found


def world_of(found: Opened) -> SlackWorld:
    assert isinstance(found.world, SlackWorld)
    return found.world


async def test_a_day_has_its_threads_below_their_messages_with_names(slack: Opened) -> None:
    world_of(slack).put("2026-05-04", b"a question for <@U7>")
    world_of(slack).replies["2026-05-04"] = ["an answer", "thanks", "welcome"]
    item = items(await listed(slack.source()))["C01:2026-05-04"]
    lines = (await slack.source().fetch(item)).content.decode().split("\n\n")
    assert lines == [
        "# #general, 2026-05-04", "**Name U1**: a question for @Name U7", "  **Name U2**: an answer",
        "  **Name U2**: thanks", "  **Name U2**: welcome",
    ]  # fmt: skip


async def test_a_reply_an_edit_and_a_deletion_within_the_days_looked_back_are_seen(slack: Opened) -> None:
    world = world_of(slack)
    slack.fill(["2026-05-02", "2026-05-03"])
    first = await listed(slack.source())
    world.replies["2026-05-01"] = ["late"]
    world.put("2026-05-02", b"edited")
    world.remove("2026-05-03")
    second = await listed(slack.source(), first[-1].cursor)
    before, after = items(first), items(second)
    changed = {key for key, item in after.items() if item.version != before[key].version}
    assert changed == {"C01:2026-05-01", "C01:2026-05-02"}
    assert "C01:2026-05-03" in removed(second)
    assert not second[-1].full


async def test_what_is_older_than_the_days_looked_back_stays(slack: Opened) -> None:
    first = await listed(slack.source(settings={"lookback_days": 2}))
    second = await listed(slack.source(settings={"lookback_days": 2}), first[-1].cursor)
    assert set(items(second)) == {"C01:2026-05-04"}
    assert "C01:2026-05-01" not in removed(second)


async def test_a_private_channel_is_its_members_and_a_public_one_the_workspaces(slack: Opened) -> None:
    assert {item.principals for item in items(await listed(slack.source())).values()} == {
        ("slack:workspace:T1",)
    }
    world_of(slack).channel["is_private"] = True
    found = {item.principals for item in items(await listed(slack.source())).values()}
    assert found == {("slack:channel:C01", "slack:user:U1", "slack:user:U2", "slack:user:U3")}


async def test_a_member_who_left_is_honoured_at_the_next_sync(slack: Opened) -> None:
    """E29."""
    world_of(slack).channel["is_private"] = True
    cursor = (await listed(slack.source()))[-1].cursor
    world_of(slack).members.remove("U2")
    with pytest.raises(CursorExpired):
        await listed(slack.source(), cursor)


async def test_a_channel_that_is_not_there_is_told_and_the_others_go_on(slack: Opened) -> None:
    batches = await listed(slack.source(settings={"channels": ["C99", "C01"]}))
    assert [problem.id for problem in unread(batches)] == ["C99"]
    assert len(items(batches)) == 2
    assert batches[-1].full


async def test_a_limit_in_the_body_is_waited_for_by_the_header(slack: Opened) -> None:
    slack.server.faults = [json_reply({"ok": False, "error": "ratelimited"}, 200, retry_after="4")]
    await listed(slack.source())
    assert slack.clock.slept == [4.0]
    slack.server.faults = [json_reply({"ok": False, "error": "ratelimited"}, 200, retry_after="999")]
    with pytest.raises(SourceLimited):
        await listed(slack.source())


async def test_an_error_code_of_the_sources_own_making_is_not_repeated(slack: Opened) -> None:
    slack.server.faults = [json_reply({"ok": False, "error": "canary <script>"}), Reply(500)]
    with pytest.raises(Exception, match="unknown") as caught:
        await listed(slack.source())
    assert "canary" not in str(caught.value)
