"""Slack's web API, in the shapes of docs.slack.dev/reference: errors come with status 200."""

from __future__ import annotations

from typing import Any

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.slack import SlackType
from tests.ingest.sources.servers.https import Reply, Request, json_reply
from tests.ingest.sources.servers.world import World, page_of

DAY_S = 86_400
# 2026-05-01T00:00:00Z
FIRST_DAY_S = 1_777_593_600


class SlackWorld(World):
    """A workspace with one channel. A document's name is a day, its content the text of a message on it."""

    kind = "slack"
    host = "slack.test"
    token = "xoxp-1-canary"
    incremental = True

    def start(self) -> None:
        self.channel: dict[str, Any] = {"id": "C01", "name": "general", "is_private": False}
        self.members = ["U1", "U2", "U3"]
        self.replies: dict[str, list[str]] = {}
        self.edits: dict[str, int] = {}

    def put(self, name: str, content: bytes) -> None:
        self.edits[name] = self.edits.get(name, -1) + 1
        super().put(name, content)

    def source_type(self, timing: Timing, limits: RetryLimits) -> SlackType:
        return SlackType(self.base, timing=timing, limits=limits)

    def other_settings(self) -> dict[str, object]:
        return {"channels": ["C99"]}

    def refusal(self) -> Reply:
        return json_reply({"ok": False, "error": "invalid_auth"})

    @staticmethod
    def ts_of(name: str) -> str:
        return f"{FIRST_DAY_S + (int(name[-2:]) - 1) * DAY_S + 3600}.000100"

    def answer(self, request: Request) -> Reply | None:
        query = request.query
        method = request.path.removeprefix("/api/")
        if query.get("channel", "C01") != "C01":
            return json_reply({"ok": False, "error": "channel_not_found"})
        if method == "auth.test":
            return json_reply({"ok": True, "team_id": "T1", "url": "https://acme.slack.test/"})
        if method == "users.conversations":
            return self._list("channels", [self.channel], query)
        if method == "conversations.info":
            return json_reply({"ok": True, "channel": self.channel})
        if method == "conversations.members":
            return self._list("members", self.members, query)
        if method == "users.info":
            return json_reply(
                {"ok": True, "user": {"id": query["user"], "real_name": f"Name {query['user']}"}}
            )
        if method == "conversations.history":
            return self._list("messages", self._history(query), query)
        if method == "conversations.replies":
            name = next(name for name in self.documents if self.ts_of(name) == query["ts"])
            texts = ["root", *self.replies.get(name, [])]
            base = query["ts"].removesuffix("100")
            rows = [
                {
                    "type": "message",
                    "user": "U2",
                    "text": text,
                    "ts": f"{base}{100 + number}",
                    "thread_ts": query["ts"],
                }
                for number, text in enumerate(texts)
            ]
            return self._list("messages", rows, query)
        return json_reply({"ok": False, "error": "unknown_method"})

    def _history(self, query: dict[str, str]) -> list[dict[str, Any]]:
        oldest, latest = float(query.get("oldest", "0")), float(query.get("latest", "inf"))
        rows: list[dict[str, Any]] = []
        for name in sorted(self.documents, reverse=True):
            ts = self.ts_of(name)
            if not oldest <= float(ts) <= latest:
                continue
            row: dict[str, Any] = {
                "type": "message",
                "user": "U1",
                "text": self.documents[name].decode(),
                "ts": ts,
            }
            if self.edits[name]:
                row["edited"] = {"user": "U1", "ts": f"{self.edits[name]}.000000"}
            if name in self.replies:
                row |= {
                    "reply_count": len(self.replies[name]),
                    "latest_reply": f"{len(self.replies[name])}.1",
                }
            rows.append(row)
            rows.append(
                {"type": "message", "subtype": "channel_join", "user": "U9", "text": "joined", "ts": ts}
            )
        return rows

    def _list(self, key: str, rows: list[Any], query: dict[str, str]) -> Reply:
        page, following = page_of(rows, query.get("cursor", ""))
        return json_reply({"ok": True, key: page, "response_metadata": {"next_cursor": following}})
