"""Slack: channels, one document for each day, its threads under the messages that began them.

From Slack's API documentation (docs.slack.dev/reference): auth.test, conversations.list, .history,
.replies and .members, users.info, cursor pagination, rate limits (429 with Retry-After), and
oauth.v2.access with user scopes. Slack tells no changes, so an incremental listing looks back
some days for replies, edits and deletions; what is older goes at the next full listing.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from services.common.errors import invalid
from services.ingest.egress.client import Egress
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import Row, cut
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    PRINCIPALS_MAX,
    Batch,
    Change,
    Credential,
    CursorExpired,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    Principals,
    Removed,
    SourceAnswerInvalid,
    SourceDenied,
    SourceSettings,
    Unread,
)
from services.ingest.sources.cursors import CursorState, fingerprint, read_cursor, write_cursor
from services.ingest.sources.slack_api import SlackApi, explain, next_cursor

_DAY_S = 86_400
_ID = re.compile(r"([A-Z0-9]+):(\d{4}-\d{2}-\d{2})")
# Joins, topics and the like say nothing that one would search for.
_SAID = frozenset({"", "bot_message", "thread_broadcast", "file_share", "me_message"})
ChannelId = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9]{2,32}$")]


class SlackSettings(SourceSettings):
    """What of a workspace to take in."""

    # Ids as in C0123456789; empty: every channel that the user is in.
    channels: tuple[ChannelId, ...] = Field(default=(), max_length=500)
    # How far back replies, edits and deletions are looked for between full listings.
    lookback_days: int = Field(default=7, ge=1, le=365)


class _State(CursorState):
    """`waiting` are channels still to list, `since` the day that an incremental listing starts at."""

    started: bool = False
    full: bool = True
    since: str = ""
    today: str = ""
    team: str = ""
    url: str = ""
    waiting: tuple[str, ...] = ()
    access: dict[str, str] = Field(default_factory=dict)
    base_access: dict[str, str] = Field(default_factory=dict)


class SlackType:
    """Slack."""

    kind: ClassVar[str] = "slack"
    title: ClassVar[str] = "Slack"
    token_form: ClassVar[str] = "a user token"  # noqa: S105  # a description
    settings_model: ClassVar[type[SourceSettings]] = SlackSettings

    def __init__(
        self,
        api_url: str = "https://slack.com",
        *,
        timing: Timing | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._timing = timing
        self._limits = limits
        self.oauth: OAuthProfile | None = OAuthProfile(
            authorize_url=f"{self._api_url}/oauth/v2/authorize",
            token_url=f"{self._api_url}/api/oauth.v2.access",
            revoke_url=f"{self._api_url}/api/auth.revoke",
            scopes=("channels:history", "channels:read", "groups:history", "groups:read", "users:read"),
            scope_parameter="user_scope",
            scope_separator=",",
            pkce_documented=False,
            revocation="bearer",
            # Tokens stay until revoked, unless the app has turned rotation on.
            refresh="rotating",
            token_path=("authed_user",),
        )

    def hosts(self, settings: SlackSettings) -> tuple[str, ...]:
        """The API's host."""
        return (parse_url(self._api_url).netloc,)

    def open(self, settings: SlackSettings, credential: Credential | None, egress: Egress) -> SlackSource:
        """A source for one job."""
        if credential is None:
            raise invalid("credential", "Slack needs a token")
        timing = self._timing or Timing()
        calls = Calls(
            egress,
            name=self.title,
            hosts=self.hosts(settings),
            credential=credential,
            explain=explain,
            timing=timing,
            limits=self._limits,
        )
        return SlackSource(SlackApi(f"{self._api_url}/api", calls), settings, timing)


class SlackSource:
    """See Source. An item's id is `CHANNEL:DAY` (UTC)."""

    kind = SlackType.kind

    def __init__(self, api: SlackApi, settings: SlackSettings, timing: Timing) -> None:
        self._api = api
        self._settings = settings
        self._timing = timing

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Channel by channel, all days or the last ones."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        if not state.started:
            state = await self._start(state)
        while state.waiting:
            channel = state.waiting[0]
            state = state.model_copy(update={"waiting": state.waiting[1:]})
            try:
                info = (await self._api.call("conversations.info", channel=channel)).row("channel")
                principals = await self._principals(channel, info, state.team)
                # A channel that was not listed before has all its days listed.
                since = state.since if channel in state.base_access else ""
                days = await self._days(channel, since)
            except (ItemGone, SourceDenied) as error:
                if channel in state.base_access:
                    raise CursorExpired("a channel is no longer to be seen; list everything again") from error
                yield Batch((Unread(channel, channel, error),), write_cursor(self._settings, state))
                continue
            access = fingerprint(*(principals or ("*public*",)))
            if not state.full and state.base_access.get(channel, access) != access:
                raise CursorExpired("who may see a channel has changed; list everything again")
            state = state.model_copy(update={"access": {**state.access, channel: access}})
            changes = self._changes(channel, info.text_or("name"), days, since, principals, state)
            yield Batch(changes, write_cursor(self._settings, state))
        if not state.full and set(state.base_access) - set(state.access):
            raise CursorExpired("the user has left a channel; list everything again")
        done = _State(full=False, since=state.today, base_access=state.access)
        yield Batch((), write_cursor(self._settings, done), complete=True, full=state.full)

    async def fetch(self, item: Item) -> Fetched:
        """A day of a channel as Markdown."""
        found = _ID.fullmatch(item.id)
        if found is None:
            raise ItemGone("there is no such item at Slack")
        channel, day = found.groups()
        start_s = _start_s(day)
        lines = [f"# {item.name}"]
        async for message in self._api.history(channel, str(start_s), str(start_s + _DAY_S)):
            if message.text_or("subtype") not in _SAID or int(float(message.text("ts"))) >= start_s + _DAY_S:
                continue
            lines.append(await self._api.line(message, ""))
            if message.number_or("reply_count"):
                async for reply in self._api.thread(channel, message.text("ts")):
                    lines.append(await self._api.line(reply, "  "))
        if len(lines) == 1:
            raise ItemGone("nothing of that day is left")
        # Slack gives the newest first; threads stay below the message that began them.
        return Fetched(
            "\n\n".join([lines[0], *_oldest_first(lines[1:])]).encode("utf-8", "replace"),
            "text/markdown",
            {"channel": channel, "day": day},
        )

    async def _start(self, state: _State) -> _State:
        who = await self._api.call("auth.test")
        channels = list(self._settings.channels)
        if not channels:
            async for row in self._api.pages(
                "users.conversations",
                "channels",
                types="public_channel,private_channel",
                exclude_archived="true",
            ):
                channels.append(row.text("id"))
        today = datetime.datetime.fromtimestamp(self._timing.clock.now_s(), datetime.UTC).date()
        since = state.since
        if since:
            back = datetime.date.fromisoformat(since) - datetime.timedelta(days=self._settings.lookback_days)
            since = back.isoformat()
        return state.model_copy(
            update={
                "started": True,
                "since": since,
                "today": today.isoformat(),
                "team": who.text("team_id"),
                "url": who.text_or("url"),
                "waiting": tuple(channels),
            }
        )

    async def _days(self, channel: str, since: str) -> dict[str, list[str]]:
        """What tells one version of a day from another, by day."""
        days: dict[str, list[str]] = {}
        async for row in self._api.history(channel, str(_start_s(since)) if since else "0", ""):
            if row.text_or("subtype") not in _SAID:
                continue
            edited = row.row_or_none("edited")
            mark = (row.text("ts"), row.text_or("latest_reply"), edited.text_or("ts") if edited else "")
            replies = str(row.number_or("reply_count"))
            days.setdefault(_day(row.text("ts")), []).append("|".join((*mark, replies)))
        return days

    def _changes(
        self,
        channel: str,
        name: str,
        days: Mapping[str, list[str]],
        since: str,
        principals: Principals,
        state: _State,
    ) -> tuple[Change, ...]:
        changes: list[Change] = []
        for day, marks in sorted(days.items()):
            item = Item(
                id=f"{channel}:{day}",
                name=cut(f"#{name}, {day}"),
                version=fingerprint(*sorted(marks)),
                url=f"{state.url}archives/{channel}" if state.url.startswith("https://") else "",
                content_type="text/markdown",
                principals=principals,
            )
            changes.append(item)
        if since:
            # Within the days looked at, one without messages has lost all it had.
            first, last = datetime.date.fromisoformat(since), datetime.date.fromisoformat(state.today)
            for offset in range((last - first).days + 1):
                day = (first + datetime.timedelta(days=offset)).isoformat()
                if day not in days:
                    changes.append(Removed(f"{channel}:{day}"))
        return tuple(changes)

    async def _principals(self, channel: str, info: Row, team: str) -> Principals:
        if not info.flag("is_private"):
            return (f"slack:workspace:{team}",)
        principals = [f"slack:channel:{channel}"]
        following = ""
        while len(principals) <= PRINCIPALS_MAX:
            page = await self._api.call(
                "conversations.members", channel=channel, limit="200", cursor=following
            )
            principals += [f"slack:user:{member}" for member in page.texts("members")]
            following = next_cursor(page)
            if not following:
                return tuple(principals[:PRINCIPALS_MAX])
        return (f"slack:channel:{channel}",)


def _oldest_first(lines: list[str]) -> list[str]:
    threads: list[list[str]] = []
    for line in lines:
        if line.startswith("  ") and threads:
            threads[-1].append(line)
        else:
            threads.append([line])
    return [line for thread in reversed(threads) for line in thread]


def _day(ts: str) -> str:
    try:
        return datetime.datetime.fromtimestamp(int(float(ts)), datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise SourceAnswerInvalid("the source's time of a message is none") from None


def _start_s(day: str) -> int:
    try:
        date = datetime.date.fromisoformat(day)
    except ValueError:
        raise ItemGone("there is no such item at Slack") from None
    return int(datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp())
