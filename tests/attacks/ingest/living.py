"""Ingest as a process that is attacked: with one source whose API is a server of the test's.

Arguments: the settings as JSON, and what to do differently as JSON. For each line on standard input it begins
a life, forked so that it begins quickly, and prints `pid port` once it serves.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

from services.common.process import forbid_dumps
from services.common.telemetry import configure_logging
from services.ingest.config import IngestSettings
from services.ingest.connections import credentials
from services.ingest.connections import store as connections
from services.ingest.egress import client
from services.ingest.main import serve
from services.ingest.sources.answers import read_row
from services.ingest.sources.calls import Calls, RetryLimits
from services.ingest.sources.contract import (
    Batch,
    Credential,
    Fetched,
    Item,
    OAuthProfile,
    SourceSettings,
)
from tests.ingest.hash_embedder import HashEmbedder


class ApiSourceType:
    """A source that does what all do: a listing, and a request for each item."""

    kind: ClassVar[str] = "api"
    title: ClassVar[str] = "API"
    token_form: ClassVar[str] = "an access token"
    settings_model: ClassVar[type[SourceSettings]] = SourceSettings

    def __init__(self, url: str, oauth: OAuthProfile | None) -> None:
        self.url = url
        self.oauth = oauth

    def hosts(self, settings: SourceSettings) -> tuple[str, ...]:
        """The API's."""
        return (self.url.split("/")[2],)

    def open(
        self, settings: SourceSettings, credential: Credential | None, egress: client.Egress
    ) -> ApiSource:
        """The source."""
        limits = RetryLimits(attempts_max=2, backoff_s=0.01)
        calls = Calls(egress, name="API", hosts=self.hosts(settings), credential=credential, limits=limits)
        return ApiSource(self.url, calls)


class ApiSource:
    """One opened source."""

    kind = ApiSourceType.kind

    def __init__(self, url: str, calls: Calls) -> None:
        self._url = url
        self._calls = calls

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """All items."""
        names = read_row(await self._calls.send(f"{self._url}/list")).texts("names")
        items = tuple(
            Item(name, name if "." in name else f"{name}.txt", "1", f"{self._url}/{name}") for name in names
        )
        yield Batch(items, b"end", complete=True, full=True)

    async def fetch(self, item: Item) -> Fetched:
        """One item."""
        answer = await self._calls.download(f"{self._url}/{item.id}")
        return Fetched(answer.content, answer.headers.get("content-type", "text/plain"))


def _weaken(what: str) -> None:
    """The twins: the process without one of its controls."""
    if what == "keeps tokens":
        folder = Path(os.environ["LIVING_KEEPS"])
        get = credentials.TokenHolders.get

        def put(self: Any, ingestion_id: str, token: Any) -> None:
            (folder / ingestion_id).write_bytes(bytes(token._secret))
            self._held[ingestion_id] = token

        def found(self: Any, ingestion_id: str) -> Any:
            kept = folder / ingestion_id
            return get(self, ingestion_id) or (
                credentials.TemporaryToken(kept.read_text()) if kept.exists() else None
            )

        credentials.TokenHolders.put = put  # type: ignore[method-assign]
        credentials.TokenHolders.get = found  # type: ignore[method-assign]
    elif what == "stores late":
        store = connections.ConnectionStore.store_credential

        def late(self: Any, row: Any, fence: int, sealed: bytes) -> bool:
            time.sleep(0.3)
            return store(self, row, fence, sealed)

        connections.ConnectionStore.store_credential = late  # type: ignore[method-assign]
    elif what == "wipes nothing":
        credentials.TemporaryToken.wipe = lambda self: None  # type: ignore[method-assign]
        credentials.TokenHolders.drop = lambda self, ingestion_id: None  # type: ignore[method-assign]


async def _live(settings: IngestSettings, source: ApiSourceType) -> None:
    def ready(port: int) -> None:
        print(os.getpid(), port, flush=True)

    await serve(settings, HashEmbedder(), asyncio.Event(), ready, [source])


def main() -> None:
    """Begins lives until standard input ends."""
    configure_logging("ingest", "debug")
    settings, wish = IngestSettings(**json.loads(sys.argv[1])), json.loads(sys.argv[2])
    limits = client.EgressLimits(timeout_s=wish["timeout_s"])
    client.EgressLimits = lambda: limits  # type: ignore[misc,assignment]
    _weaken(wish["weakened"])
    oauth = None
    if wish["oauth"] is not None:
        lists = {name: tuple(wish["oauth"][name]) for name in ("scopes", "token_path")}
        oauth = OAuthProfile(**(wish["oauth"] | lists))
    for _line in sys.stdin:
        child = os.fork()
        if child == 0:
            forbid_dumps()
            asyncio.run(_live(settings, ApiSourceType(wish["url"], oauth)))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
