"""Temporary tokens: in memory for one fetch, and nowhere else whatever happens."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import pickle
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import structlog

from sealcomb.v1 import ingestion_service_pb2 as pb
from services.common.telemetry import configure_logging
from services.ingest.connections.credentials import TemporaryToken, TokenHolders
from services.ingest.ingestions.service import Wish
from services.ingest.sources.contract import CredentialRefused, SourceUnavailable
from tests.attacks.canary import Canaries, files_below
from tests.ingest.jobs.rig import call, create_temporary, ended, get, sql, texts
from tests.ingest.memory_source import MemorySourceType
from tests.ingest.rig import Rig, details, eventually, running

TOKEN = "canary-temporary-token-7f3a9c51d2e84b60"
TEXT = "canary document text 19c6ad0e54b34f7c99"


@pytest.fixture
def source() -> MemorySourceType:
    """A source with four things, which accepts the canary."""
    made = MemorySourceType(tokens={TOKEN})
    for number in range(4):
        made.put(f"item {number}", f"{TEXT} {number}")
    return made


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """What the service logs, as it does in its own process, with everything let through."""
    stream = io.StringIO()
    configure_logging("ingest", "debug")
    structlog.configure(
        cache_logger_on_first_use=False, logger_factory=structlog.PrintLoggerFactory(cast("Any", stream))
    )
    yield stream
    structlog.reset_defaults()


@pytest.fixture
async def rig(tmp_path: Path, source: MemorySourceType, logs: io.StringIO) -> AsyncIterator[Rig]:
    """A running ingest with that source and a collection."""
    async with running(tmp_path, source_types=[source], ingestion_lease_s=1, extract_workers=1) as made:
        made.collection()
        yield made


def leaks(rig: Rig, said: str = "") -> list[Any]:
    """Where the canaries are, in any file that was written and in what was said."""
    canaries = Canaries()
    canaries.text("token", TOKEN)
    canaries.text("text", TEXT)
    found = [leak for path in files_below(rig.folder) for leak in canaries.find(path.read_bytes(), path.name)]
    return found + canaries.find(said.encode(), "said")


async def test_a_token_reaches_the_source_and_no_file(
    rig: Rig, source: MemorySourceType, logs: io.StringIO
) -> None:
    """E1: after success, while the process still lives; with DEBUG logging."""
    begun = await create_temporary(rig, TOKEN)
    done = await ended(rig, begun.id)
    assert done.state == pb.INGESTION_STATE_SUCCEEDED
    assert {token for _what, token in source.log} == {TOKEN}
    assert leaks(rig, logs.getvalue()) == []


async def test_the_scan_notices_a_planted_token(rig: Rig) -> None:
    """The twin: a token in a file of the service's own is found."""
    (rig.folder / "objects").mkdir(exist_ok=True)
    (rig.folder / "objects" / "planted").write_text(TOKEN)
    assert leaks(rig)


@pytest.mark.parametrize("trouble", ["refused", "broken", "down", "slow", "cancelled"])
async def test_no_failure_writes_a_token_anywhere(
    rig: Rig, source: MemorySourceType, trouble: str, logs: io.StringIO
) -> None:
    """E1: the source says 401 or 500, breaks off, is slow; the caller cancels."""
    stuck = asyncio.Event()

    async def stand(_item: object) -> None:
        await stuck.wait()

    def explode(_item: object) -> None:
        raise RuntimeError(f"a library error with {TOKEN} in it")

    if trouble == "refused":
        source.tokens = set()
    elif trouble == "broken":
        source.before_fetch = explode
    elif trouble == "down":
        for thing in source.things.values():
            thing.error = SourceUnavailable("down")
    else:
        source.before_fetch = stand
    begun = await create_temporary(rig, TOKEN)
    if trouble == "refused":
        done = await ended(rig, begun.id)
        assert (done.state, done.reason) == (pb.INGESTION_STATE_NEEDS_TOKEN, "CREDENTIAL_REFUSED")
    else:
        await eventually(lambda: any(what.startswith("item") for what, _token in source.log))
        await asyncio.sleep(0.5)
        await call(rig, "CancelIngestion", pb.CancelIngestionRequest(id=begun.id))
    stuck.set()
    assert "run begins" in logs.getvalue()
    assert leaks(rig, logs.getvalue()) == []


async def test_a_lost_worker_means_a_new_token_and_no_work_twice(rig: Rig, source: MemorySourceType) -> None:
    """E2: after a restart the ingestion says that it needs a token, never goes on by itself, and resumes."""
    stuck = asyncio.Event()

    async def stop_at(item: Any) -> None:
        if item.id == "item 3":
            await stuck.wait()

    source.before_fetch = stop_at
    begun = await create_temporary(rig, TOKEN)
    await eventually(lambda: len(texts(rig)) == 3 and len(source.fetches()) == 4)
    # As after a kill: the row says RUNNING, under the lease of a process that is gone.
    sql(rig, "update ingestions set fence = fence + 1, holder = 'somebody else', lease_until_ms = 0")
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_NEEDS_TOKEN, "TOKEN_LOST")
    before = list(source.log)
    await asyncio.sleep(1.2)
    assert source.log == before
    source.before_fetch = None
    source.tokens.add("another-good-token")
    request = pb.ResumeIngestionRequest(id=begun.id, temporary_token="another-good-token")
    await call(rig, "ResumeIngestion", request)
    done = await ended(rig, begun.id)
    assert done.state == pb.INGESTION_STATE_SUCCEEDED
    assert len(texts(rig)) == 4
    resumed = source.log[len(before) :]
    assert {what for what, _token in resumed} == {"item 3"}
    assert {token for _what, token in resumed} == {"another-good-token"}


async def test_what_was_fetched_is_indexed_without_the_token(rig: Rig, source: MemorySourceType) -> None:
    """E2: content is sealed before anything knows that it was fetched, so a lost token costs no work."""
    holding = asyncio.Event()

    async def hold() -> None:
        await holding.wait()

    rig.vectorstore.before_put = hold
    begun = await create_temporary(rig, TOKEN)
    await eventually(
        lambda: sql(rig, "select count(*) from ingestion_items where state = 'fetched'")[0][0] == 4
    )
    sql(rig, "update ingestions set fence = fence + 1, holder = 'somebody else', lease_until_ms = 0")
    source.tokens.clear()
    rig.vectorstore.before_put = None
    holding.set()
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_SUCCEEDED
    assert len(texts(rig)) == 4
    assert len(source.fetches()) == 4


async def test_a_refused_token_asks_for_a_new_one(rig: Rig, source: MemorySourceType) -> None:
    source.tokens = {"fresh"}
    begun = await create_temporary(rig, "stale")
    done = await ended(rig, begun.id)
    assert (done.state, done.reason) == (pb.INGESTION_STATE_NEEDS_TOKEN, "CREDENTIAL_REFUSED")
    await call(rig, "ResumeIngestion", pb.ResumeIngestionRequest(id=begun.id, temporary_token="fresh"))
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_SUCCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, "ResumeIngestion", pb.ResumeIngestionRequest(id=begun.id, temporary_token="fresh"))
    assert details(caught.value)[0] == "INGESTION_NOT_WAITING"


async def test_a_retry_with_a_temporary_token_waits_for_one(rig: Rig, source: MemorySourceType) -> None:
    source.things["item 1"].content = b""
    begun = await create_temporary(rig, TOKEN)
    assert (await ended(rig, begun.id)).state == pb.INGESTION_STATE_PARTIAL
    await call(rig, "RetryIngestion", pb.RetryIngestionRequest(id=begun.id))
    assert (await get(rig, begun.id)).state == pb.INGESTION_STATE_NEEDS_TOKEN
    source.put("item 1", f"{TEXT} now")
    await call(rig, "ResumeIngestion", pb.ResumeIngestionRequest(id=begun.id, temporary_token=TOKEN))
    done = await ended(rig, begun.id, run=2)
    assert (done.state, done.counts.unchanged, done.counts.indexed) == (pb.INGESTION_STATE_SUCCEEDED, 3, 1)


async def test_no_column_can_hold_a_token(rig: Rig) -> None:
    """E1: by the schema itself: what is text is an id, a state or the grant; what is not is sealed."""
    await ended(rig, (await create_temporary(rig, TOKEN)).id)
    for table in ("ingestions", "ingestion_items"):
        for row in sql(rig, f"select * from {table}"):
            for value in row:
                assert TOKEN not in str(value)
                assert not isinstance(value, bytes) or TOKEN.encode() not in value


def test_a_holder_cannot_be_serialised_copied_or_printed() -> None:
    """E1: every usual way of a value into a queue, a log or a trace is shut."""
    token = TemporaryToken(TOKEN)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            attempt(token)
    wish = Wish("c", token=token)
    stream = io.StringIO()
    logger = logging.getLogger("tests.temporary_tokens")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(stream))
    logger.warning("holder %s %r", token, wish)
    structlog.wrap_logger(structlog.PrintLogger(stream)).warning("holder", token=token, wish=wish)
    for text in (
        repr(token),
        str(token),
        f"{token}",
        repr(wish),
        stream.getvalue(),
        repr(vars(TemporaryToken)),
    ):
        assert TOKEN not in text
    with pytest.raises(TypeError):
        vars(token)


async def test_a_wiped_holder_gives_nothing() -> None:
    token = TemporaryToken(TOKEN)
    buffer = token._secret
    assert await token.token() == TOKEN
    holders = TokenHolders()
    holders.put("job", token)
    holders.drop_all()
    assert bytes(buffer) == b""
    with pytest.raises(CredentialRefused):
        await token.token()


async def test_a_refused_holder_never_gives_the_token_again() -> None:
    token = TemporaryToken(TOKEN)
    for _ in range(2):
        with pytest.raises(CredentialRefused):
            await token.token(refused=True)
    with pytest.raises(CredentialRefused):
        await token.token()


async def test_a_restart_finds_no_token(tmp_path: Path, source: MemorySourceType) -> None:
    """E2: an orderly stop gives the ingestion back as NEEDS_TOKEN, and the next process leaves it so."""
    stuck = asyncio.Event()

    async def stand(_item: object) -> None:
        await stuck.wait()

    source.before_fetch = stand
    async with running(tmp_path, source_types=[source], ingestion_lease_s=1, extract_workers=1) as rig:
        rig.collection()
        begun = await create_temporary(rig, TOKEN)
        await eventually(lambda: bool(source.fetches()))
    assert sql(rig, "select id, state, reason from ingestions") == [(begun.id, "needs token", "TOKEN_LOST")]
    assert leaks(rig) == []


async def test_a_token_that_nobody_waits_for_is_wiped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """E1: refused with the call that brought it, it is not kept until something else takes its place."""
    wiped: list[str] = []
    wipe = TemporaryToken.wipe

    def seen(self: TemporaryToken) -> None:
        wiped.append(self._secret.decode())
        wipe(self)

    begun = await create_temporary(rig, TOKEN)
    await ended(rig, begun.id)
    monkeypatch.setattr(TemporaryToken, "wipe", seen)
    requests: list[Any] = [
        pb.ResumeIngestionRequest(id=begun.id, temporary_token="not waited for"),
        pb.ResumeIngestionRequest(id="x" * 26, temporary_token="of no ingestion"),
    ]
    for request in requests:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(rig, "ResumeIngestion", request)
    with pytest.raises(grpc.aio.AioRpcError):
        await create_temporary(rig, "for no collection", collection="nowhere")
    assert wiped == ["not waited for", "of no ingestion", "for no collection"]
