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

from services.common.errors import SealcombError, invalid
from services.ingest.egress.client import Answer, Egress
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import Row, cut, read_row
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    PRINCIPALS_MAX,
    Batch,
    Change,
    Credential,
    CredentialRefused,
    CursorExpired,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    Principals,
    Removed,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
    SourceSettings,
    SourceUnavailable,
    Unread,
)
from services.ingest.sources.cursors import CursorState, fingerprint, read_cursor, write_cursor

_DAY_S = 86_400
_PAGE_MESSAGES = "200"
_THREAD_PAGES_MAX = 50
_NAMES_MAX = 2_000
_ID = re.compile(r"([A-Z0-9]+):(\d{4}-\d{2}-\d{2})")
_MENTION = re.compile(r"<@([A-Z0-9]{1,32})>")
# Joins, topics and the like say nothing that one would search for.
_SAID = frozenset({"", "bot_message", "thread_broadcast", "file_share", "me_message"})
_ERRORS: Mapping[str, type[SealcombError]] = {
    "ratelimited": SourceLimited,
    "rate_limited": SourceLimited,
    "not_in_channel": SourceDenied,
    "missing_scope": SourceDenied,
    "no_permission": SourceDenied,
    "channel_not_found": ItemGone,
    "thread_not_found": ItemGone,
    "user_not_found": ItemGone,
    "internal_error": SourceUnavailable,
    "fatal_error": SourceUnavailable,
    "service_unavailable": SourceUnavailable,
    "request_timeout": SourceUnavailable,
} | dict.fromkeys(
    ("invalid_auth", "not_authed", "token_expired", "token_revoked", "account_inactive"), CredentialRefused
)

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
            explain=_explain,
            timing=timing,
            limits=self._limits,
        )
        return SlackSource(f"{self._api_url}/api", settings, calls, timing)


class SlackSource:
    """See Source. An item's id is `CHANNEL:DAY` (UTC)."""

    kind = SlackType.kind

    def __init__(self, api_url: str, settings: SlackSettings, calls: Calls, timing: Timing) -> None:
        self._api_url = api_url
        self._settings = settings
        self._calls = calls
        self._timing = timing
        self._names: dict[str, str] = {}

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Channel by channel, all days or the last ones."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        if not state.started:
            state = await self._start(state)
        while state.waiting:
            channel = state.waiting[0]
            state = state.model_copy(update={"waiting": state.waiting[1:]})
            try:
                info = (await self._call("conversations.info", channel=channel)).row("channel")
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
        async for message in self._history(channel, str(start_s), str(start_s + _DAY_S)):
            if message.text_or("subtype") not in _SAID or int(float(message.text("ts"))) >= start_s + _DAY_S:
                continue
            lines.append(await self._line(message, ""))
            if message.number_or("reply_count"):
                async for reply in self._thread(channel, message.text("ts")):
                    lines.append(await self._line(reply, "  "))
        if len(lines) == 1:
            raise ItemGone("nothing of that day is left")
        # Slack gives the newest first; threads stay below the message that began them.
        return Fetched(
            "\n\n".join([lines[0], *_oldest_first(lines[1:])]).encode("utf-8", "replace"),
            "text/markdown",
            {"channel": channel, "day": day},
        )

    async def _start(self, state: _State) -> _State:
        who = await self._call("auth.test")
        channels = list(self._settings.channels)
        if not channels:
            async for row in self._pages(
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
        async for row in self._history(channel, str(_start_s(since)) if since else "0", ""):
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
            page = await self._call("conversations.members", channel=channel, limit="200", cursor=following)
            principals += [f"slack:user:{member}" for member in page.texts("members")]
            following = _next_cursor(page)
            if not following:
                return tuple(principals[:PRINCIPALS_MAX])
        return (f"slack:channel:{channel}",)

    async def _line(self, message: Row, indent: str) -> str:
        user = message.text_or("user")
        author = await self._name(user) if user else message.text_or("username", "bot")
        text = message.text_or("text")
        for mentioned in dict.fromkeys(_MENTION.findall(text)):
            text = text.replace(f"<@{mentioned}>", f"@{await self._name(mentioned)}")
        return f"{indent}**{author}**: {text}"

    async def _name(self, user: str) -> str:
        if user not in self._names and len(self._names) < _NAMES_MAX:
            try:
                row = (await self._call("users.info", user=user)).row("user")
                self._names[user] = row.text_or("real_name") or row.text_or("name") or user
            except (ItemGone, SourceDenied):
                self._names[user] = user
        return self._names.get(user, user)

    def _history(self, channel: str, oldest: str, latest: str) -> AsyncIterator[Row]:
        bounds = {"oldest": oldest, "latest": latest, "inclusive": "true"}
        return self._pages("conversations.history", "messages", channel=channel, **bounds)

    async def _thread(self, channel: str, ts: str) -> AsyncIterator[Row]:
        count = 0
        async for row in self._pages("conversations.replies", "messages", channel=channel, ts=ts):
            count += 1
            if count > _THREAD_PAGES_MAX * int(_PAGE_MESSAGES):
                return
            if row.text("ts") != ts:
                yield row

    async def _pages(self, method: str, key: str, **parameters: str) -> AsyncIterator[Row]:
        following = ""
        while True:
            page = await self._call(method, limit=_PAGE_MESSAGES, cursor=following, **parameters)
            for row in page.rows(key):
                yield row
            following = _next_cursor(page)
            if not following:
                return

    async def _call(self, method: str, **parameters: str) -> Row:
        sent = {name: value for name, value in parameters.items() if value}
        return read_row(await self._calls.send(f"{self._api_url}/{method}", parameters=sent))


def _explain(answer: Answer) -> SealcombError | None:
    """Slack says most errors with status 200 and `ok: false`."""
    if answer.status != 200:
        return None
    row = read_row(answer)
    if row.flag("ok"):
        return None
    code = row.text_or("error")
    kind = _ERRORS.get(code, SourceAnswerInvalid)
    return kind(f"Slack refused the call: {code if re.fullmatch('[a-z_]{1,64}', code) else 'unknown'}")


def _next_cursor(page: Row) -> str:
    metadata = page.row_or_none("response_metadata")
    return metadata.text_or("next_cursor") if metadata else ""


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
