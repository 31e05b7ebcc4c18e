"""E1, E25: no temporary token, token of OAuth or text is readable, whatever happens to ingest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sealcomb.v1 import ingestion_service_pb2 as pb
from tests.attacks.ingest.leaks import Scan, clients_file, live_through, plant_documents
from tests.attacks.ingest.memory import WIPED, copies
from tests.attacks.ingest.rig import attacked
from tests.ingest.oauth.providers import User, provider
from tests.ingest.sources.servers.https import make_tls

STEPS = ["success", "401", "500", "timeout", "cancel", "kill -9", "restart"]


@asynccontextmanager
async def scanning(folder: Path, **changes: Any) -> AsyncIterator[Scan]:
    """A process, a provider, a user of it, and the scan."""
    for name in ("server", "process"):
        (folder / name).mkdir()
    tls = make_tls(folder / "server", ())
    with provider(folder / "provider", tls.ca, ("api",)) as one:
        profile = one.profile()
        async with attacked(
            folder / "process",
            tls,
            oauth=profile,
            allow=one.netloc,
            oauth_clients_file=clients_file(folder, one),
            **changes,
        ) as found:
            yield Scan(found, User(tls.ca, folder), one)


async def test_nothing_is_readable_after_any_end(tmp_path: Path) -> None:
    """E1, E25: after success, 401, 500, a timeout, a cancel, a kill and a restart, with DEBUG logging."""
    async with scanning(tmp_path) as scan:
        await live_through(scan)
        assert {name: found for name, found in scan.steps.items() if found} == {}
        assert list(scan.steps) == STEPS
        assert scan.ends["success"] == scan.ends["restart"] == [pb.INGESTION_STATE_SUCCEEDED] * 2
        assert scan.ends["401"] == [pb.INGESTION_STATE_NEEDS_TOKEN, pb.INGESTION_STATE_FAILED]
        assert set(scan.ends["kill -9"]) <= {pb.INGESTION_STATE_NEEDS_TOKEN, pb.INGESTION_STATE_RUNNING}
        # Three kinds of secret in each step at least, and the source was shown the tokens.
        assert len(scan.canaries.names()) > 5 * len(STEPS)
        assert len(set(scan.attacked.api.seen)) >= 2 * len(STEPS)


async def test_nothing_of_a_pdf_or_an_office_document_is_readable(tmp_path: Path) -> None:
    """E25: neither the file nor the text in it, after its parser's success, its death, and a restart."""
    async with scanning(tmp_path) as scan:
        attacked, planted = scan.attacked, plant_documents(scan)

        async def to_its_end(ids: list[str]) -> None:
            await asyncio.gather(*map(attacked.ended, ids))
            await scan.tell(ids)

        async def killed(ids: list[str]) -> None:
            await attacked.api.asked.wait()
            # Some of them are with their parsers by now.
            await asyncio.sleep(0.5)
            attacked.life.kill()
            await attacked.life.begin()
            await scan.tell(ids)

        await scan.step("success", to_its_end)
        await scan.step("kill -9", killed)
        await scan.step("restart", to_its_end)
        assert {name: found for name, found in scan.steps.items() if found} == {}
        assert scan.ends["restart"] == [pb.INGESTION_STATE_SUCCEEDED] * 2
        # They were parsed: what is searched has the text of each.
        collection = next(iter(attacked.rig.vectorstore.collections.values()))
        passages = [passage.text for made in collection.passages.values() for passage in made]
        for secret in planted.values():
            assert any(secret in passage for passage in passages)
        # The twin: a parser that writes the file or the text down is noticed.
        for name, (_kind, content) in attacked.api.files.items():
            for made, raw in (("bytes", content), ("text", planted[name].encode())):
                (attacked.rig.folder / "tmp" / "spilled").write_bytes(raw)
                assert f"{made} of {name}" in {leak.canary for leak in scan.find()}


async def test_a_process_that_keeps_tokens_is_noticed(tmp_path: Path) -> None:
    """The twin: the same scan of a process that writes its tokens beside its data."""
    async with scanning(tmp_path, weakened="keeps tokens") as scan:
        token = scan.canaries.text("token", "zqtemporarytokenqzbcdfghjklmnpqrtvwxzbcdf")
        await scan.attacked.ended(await scan.attacked.begin_temporary(token))
        for kept in (scan.attacked.rig.folder / "keeps").iterdir():
            kept.rename(scan.attacked.rig.folder / "objects" / kept.name)
        assert {leak.canary for leak in scan.find()} == {"token"}


async def test_no_copy_of_a_temporary_token_is_left_in_memory(tmp_path: Path) -> None:
    """E1: all that the process may write, read from outside; there while it is used, not after the end."""
    used, left = await copies(tmp_path, environ=WIPED)
    assert used > 0
    assert left == 0
