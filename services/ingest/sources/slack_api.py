"""Slack's web API: its methods, pages, and the errors that it says with status 200."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from services.common.errors import SealcombError
from services.ingest.egress.client import Answer
from services.ingest.sources.answers import Row, read_row
from services.ingest.sources.calls import Calls
from services.ingest.sources.contract import (
    CredentialRefused,
    ItemGone,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
    SourceUnavailable,
)

_PAGE_MESSAGES = "200"
_THREAD_PAGES_MAX = 50
_NAMES_MAX = 2_000
_MENTION = re.compile(r"<@([A-Z0-9]{1,32})>")
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


class SlackApi:
    """Slack's API for one job."""

    def __init__(self, api_url: str, calls: Calls) -> None:
        self._api_url = api_url
        self._calls = calls
        self._names: dict[str, str] = {}

    async def line(self, message: Row, indent: str) -> str:
        """A message as one line, with names for the ids in it."""
        user = message.text_or("user")
        author = await self.name(user) if user else message.text_or("username", "bot")
        text = message.text_or("text")
        for mentioned in dict.fromkeys(_MENTION.findall(text)):
            text = text.replace(f"<@{mentioned}>", f"@{await self.name(mentioned)}")
        return f"{indent}**{author}**: {text}"

    async def name(self, user: str) -> str:
        """A user's name, or the id when there is none to be had."""
        if user not in self._names and len(self._names) < _NAMES_MAX:
            try:
                row = (await self.call("users.info", user=user)).row("user")
                self._names[user] = row.text_or("real_name") or row.text_or("name") or user
            except (ItemGone, SourceDenied):
                self._names[user] = user
        return self._names.get(user, user)

    def history(self, channel: str, oldest: str, latest: str) -> AsyncIterator[Row]:
        """The messages of a channel between two times, the newest first, without replies."""
        bounds = {"oldest": oldest, "latest": latest, "inclusive": "true"}
        return self.pages("conversations.history", "messages", channel=channel, **bounds)

    async def thread(self, channel: str, ts: str) -> AsyncIterator[Row]:
        """The replies to a message, the oldest first."""
        count = 0
        async for row in self.pages("conversations.replies", "messages", channel=channel, ts=ts):
            count += 1
            if count > _THREAD_PAGES_MAX * int(_PAGE_MESSAGES):
                return
            if row.text("ts") != ts:
                yield row

    async def pages(self, method: str, key: str, **parameters: str) -> AsyncIterator[Row]:
        """The rows of all pages of a method."""
        following = ""
        while True:
            page = await self.call(method, limit=_PAGE_MESSAGES, cursor=following, **parameters)
            for row in page.rows(key):
                yield row
            following = next_cursor(page)
            if not following:
                return

    async def call(self, method: str, **parameters: str) -> Row:
        """The answer of a method that worked."""
        sent = {name: value for name, value in parameters.items() if value}
        return read_row(await self._calls.send(f"{self._api_url}/{method}", parameters=sent))


def explain(answer: Answer) -> SealcombError | None:
    """Slack says most errors with status 200 and `ok: false`."""
    if answer.status != 200:
        return None
    row = read_row(answer)
    if row.flag("ok"):
        return None
    code = row.text_or("error")
    kind = _ERRORS.get(code, SourceAnswerInvalid)
    return kind(f"Slack refused the call: {code if re.fullmatch('[a-z_]{1,64}', code) else 'unknown'}")


def next_cursor(page: Row) -> str:
    """The cursor of the next page; nothing after the last one."""
    metadata = page.row_or_none("response_metadata")
    return metadata.text_or("next_cursor") if metadata else ""
