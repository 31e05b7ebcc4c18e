"""What every vendor's server in these tests can do, so that one suite runs over all of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.contract import SourceType
from tests.ingest.sources.servers.https import Reply, Request, json_reply

PAGE = 2  # rows of a page, whatever is asked for: a listing of five needs three


class World:
    """A vendor's API over documents by name. `token` is the one that it accepts."""

    kind: ClassVar[str]
    host: ClassVar[str]
    token: str = "token-of-the-canary"
    # Whether the API says which documents are gone, so that a second listing need not be a full one.
    incremental: ClassVar[bool] = False

    def __init__(self) -> None:
        self.base = ""
        self.documents: dict[str, bytes] = {}
        self.start()

    def start(self) -> None:
        """Called once, before the first document."""

    def put(self, name: str, content: bytes) -> None:
        """Adds or changes a document."""
        self.documents[name] = content

    def remove(self, name: str) -> None:
        """Deletes a document."""
        del self.documents[name]

    def source_type(self, timing: Timing, limits: RetryLimits) -> SourceType[Any]:
        """The real source type, led to this server."""
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        """Settings that take in everything."""
        return {}

    def other_settings(self) -> dict[str, object]:
        """Settings of something else."""
        raise NotImplementedError

    def authorized(self, request: Request) -> bool:
        """Whether a request carries the token, in the one place where it belongs."""
        return request.headers.get("authorization") == f"Bearer {self.token}"

    def refusal(self) -> Reply:
        """The answer to a request without it."""
        return json_reply({"message": "Bad credentials"}, 401)

    def handle(self, request: Request) -> Reply:
        """The server."""
        if self.token and not self.authorized(request):
            return self.refusal()
        return self.answer(request) or json_reply({"message": "Not Found"}, 404)

    def answer(self, request: Request) -> Reply | None:
        """The answer to an authorized request; None for what is not there."""
        raise NotImplementedError

    def title(self, name: str) -> str:
        """What the item of a document has in its name."""
        return name


def hash_of(content: object) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def page_of(rows: list[Any], token: str) -> tuple[list[Any], str]:
    """A page, and the token of the next one; nothing after the last."""
    start = int(token or "0")
    following = str(start + PAGE) if start + PAGE < len(rows) else ""
    return rows[start : start + PAGE], following
