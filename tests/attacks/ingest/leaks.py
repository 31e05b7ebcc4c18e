"""The canary scan of an ingest process after each thing that may happen to it, with DEBUG logging.

One process lives through all of it; each step has secrets of its own, and the scan looks for all of them so
far: every file, deleted ones that are still open, command line and environment, and what callers were told.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb.v1 import source_service_pb2 as source_pb
from tests.attacks.canary import Canaries, Leak, deleted_files, files_below, process_texts
from tests.attacks.ingest.rig import Attacked, secret
from tests.ingest.jobs.rig import call, get
from tests.ingest.oauth.providers import Provider, User
from tests.ingest.samples.documents import pdf, slides, word, workbook

REDIRECT = "http://127.0.0.1:53682/callback/api"


@dataclass
class Scan:
    """What has been planted, and where to look."""

    attacked: Attacked
    user: User
    provider: Provider
    canaries: Canaries = field(default_factory=Canaries)
    told: list[str] = field(default_factory=list)
    steps: dict[str, list[Leak]] = field(default_factory=dict)
    # How the ingestions of each step stood when it was looked at.
    ends: dict[str, list[int]] = field(default_factory=dict)
    # Also where a process that is made to keep its tokens keeps them.
    look_everywhere: bool = False

    async def connect(self) -> str:
        """A connection by OAuth, whose tokens are canaries from now on; its id."""
        rig = self.attacked.rig
        begin = source_pb.BeginConnectionRequest(kind="api", redirect_uri=REDIRECT)
        begun = await call(rig, "BeginConnection", begin)
        brought = await self.user.grant(begun.authorization_url, REDIRECT)
        query = parse_qs(urlsplit(begun.authorization_url).query)
        self.canaries.text(f"state {len(self.canaries.names())}", query["state"][0])
        self.canaries.text(f"code {len(self.canaries.names())}", brought["code"])
        fields = {name: brought[name] for name in ("state", "code", "iss")}
        made = await call(rig, "CompleteConnection", source_pb.CompleteConnectionRequest(**fields))
        self.plant_tokens()
        return str(made.connection.id)

    def plant_tokens(self) -> None:
        """Every token that the provider has given so far."""
        for number, event in enumerate(list(self.provider.events)):
            for name in ("access_token", "refresh_token"):
                if event.get("event") == "tokens" and event.get(name):
                    self.canaries.text(f"{name} {number}", event[name])

    async def step(self, name: str, happens: Callable[[list[str]], Awaitable[None]]) -> None:
        """Something happens to ingestions by both kinds of token; then everything is looked through."""
        api = self.attacked.api
        api.text = self.canaries.text(f"{name}: text", secret("documenttext"))
        token = self.canaries.text(f"{name}: temporary token", secret("temporarytoken"))
        connection = await self.connect()
        api.asked.clear()
        ids = [
            await self.attacked.begin_temporary(token),
            await self.attacked.begin(connection_id=connection),
        ]
        await happens(ids)
        self.plant_tokens()
        self.ends[name] = [(await get(self.attacked.rig, id_)).state for id_ in ids]
        self.steps[name] = self.find()

    def find(self) -> list[Leak]:
        """Every leak there is now."""
        folder, pid = self.attacked.rig.folder, self.attacked.life.pid
        found: list[Leak] = []
        for path in files_below(folder):
            # What the callers' and the operator's own files are for.
            if path.name != "clients.json" and (self.look_everywhere or "keeps" not in path.parts):
                found += self.canaries.find(path.read_bytes(), str(path.relative_to(folder)))
        for where, data in [*deleted_files([pid]), *process_texts([pid])]:
            found += self.canaries.find(data, where)
        return found + self.canaries.find("\n".join(self.told).encode(), "told")

    async def tell(self, ids: list[str]) -> None:
        """Remembers what a caller is told of ingestions; names and texts are not among it."""
        for id_ in ids:
            found = await get(self.attacked.rig, id_)
            failed = await call(self.attacked.rig, "ListFailedItems", pb.ListFailedItemsRequest(id=id_))
            self.told += [str(found), str(failed)]

    async def cancel(self, ids: list[str]) -> None:
        """Cancels ingestions."""
        for id_ in ids:
            await call(self.attacked.rig, "CancelIngestion", pb.CancelIngestionRequest(id=id_))


async def live_through(scan: Scan) -> None:
    """Success, 401, 500, silence, a cancellation, a kill, and a restart in order."""
    attacked, api = scan.attacked, scan.attacked.api

    async def to_its_end(ids: list[str]) -> None:
        await asyncio.gather(*map(attacked.ended, ids))
        await scan.tell(ids)

    async def in_trouble(ids: list[str]) -> None:
        # A request that is not answered is given up meanwhile.
        await asyncio.sleep(attacked.timeout_s + 1.0 if api.trouble == "silent" else 1.0)
        await scan.tell(ids)
        await scan.cancel(ids)

    async def cancelled(ids: list[str]) -> None:
        await api.asked.wait()
        await scan.cancel(ids)
        await scan.tell(ids)

    async def killed(ids: list[str]) -> None:
        await api.asked.wait()
        attacked.life.kill()
        await attacked.life.begin()
        await scan.tell(ids)

    await scan.step("success", to_its_end)
    for trouble, happens in (("401", to_its_end), ("500", in_trouble), ("silent", in_trouble)):
        api.trouble = trouble
        await scan.step({"silent": "timeout"}.get(trouble, trouble), happens)
    await scan.step("cancel", cancelled)
    await scan.step("kill -9", killed)
    api.trouble = ""
    await scan.step("restart", to_its_end)


def plant_documents(scan: Scan) -> dict[str, str]:
    """Makes the source's documents a PDF and office files; the secret in each, by name."""
    office = "application/vnd.openxmlformats-officedocument."
    kinds: dict[str, tuple[str, Callable[[str], bytes]]] = {
        "a.pdf": ("application/pdf", lambda text: pdf([text])),
        "b.docx": (f"{office}wordprocessingml.document", word),
        "c.pptx": (f"{office}presentationml.presentation", slides),
        "d.xlsx": (f"{office}spreadsheetml.sheet", workbook),
    }
    planted = {name: scan.canaries.text(f"text of {name}", secret("documenttext")) for name in kinds}
    scan.attacked.api.files = {name: (kind, make(planted[name])) for name, (kind, make) in kinds.items()}
    for name, (_kind, content) in scan.attacked.api.files.items():
        # What a parser might write down before it has unpacked anything.
        scan.canaries.raw(f"bytes of {name}", content[len(content) // 2 :][:30])
    return planted


def clients_file(folder: Path, provider: Provider) -> Path:
    """The operator's client."""
    path = folder / "clients.json"
    client = {"client_id": provider.client_id, "client_secret": provider.client_secret}
    path.write_text(json.dumps({"api": client}))
    return path
