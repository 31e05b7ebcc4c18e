"""An ingest process between fakes, and the source that it fetches from, which does as a test says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sealcomb.v1 import ingestion_service_pb2 as pb
from services.ingest.sources.contract import OAuthProfile
from tests.ingest.jobs.rig import call, ended
from tests.ingest.jobs.test_kill import Lives
from tests.ingest.rig import Rig, surroundings
from tests.ingest.sources.servers.https import HttpsServer, Reply, Request, Tls, json_reply

ITEMS = 3
_MEMORY = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw")


def secret(name: str) -> str:
    """A unique text of letters, long enough for the scanner."""
    return f"zq{name}qz" + "".join(secrets.choice("bcdfghjklmnpqrtvwxz") for _ in range(32))


@dataclass
class Api:
    """What the source's server does. `trouble`: nothing, 401, 500, or silent."""

    text: str
    trouble: str = ""
    items: int = ITEMS
    delay_s: float = 0.0
    # Instead of texts: what there is by name, with its type.
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    # Set while an item is asked for; the answer waits until it may go on.
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[str] = field(default_factory=list)

    def handle(self, request: Request) -> Reply:
        """The server."""
        self.seen.append(request.headers.get("authorization", ""))
        name = request.path.rpartition("/")[2]
        if name != "list":
            self.asked.set()
        if self.trouble == "silent" and name != "list":
            return Reply(delay_s=60)
        if self.trouble in ("401", "500"):
            # A server that is hostile as well as broken: it gives the token back.
            said = request.headers.get("authorization", "").encode()
            return Reply(int(self.trouble), {"x-said": said.decode()}, said)
        if name == "list":
            return json_reply(
                {"names": list(self.files) or [f"item{number}" for number in range(self.items)]}
            )
        if name in self.files:
            kind, content = self.files[name]
            return Reply(200, {"content-type": kind}, content, self.delay_s)
        return Reply(200, {"content-type": "text/plain"}, f"{self.text} {name}".encode(), self.delay_s)


@dataclass
class Attacked:
    """The process, and what stands around it."""

    rig: Rig
    life: Lives
    api: Api
    server: HttpsServer
    timeout_s: float

    async def begin(self, **fields: Any) -> str:
        """Begins an ingestion; its id."""
        request = pb.CreateIngestionRequest(collection="notes", **fields)
        return str((await call(self.rig, "CreateIngestion", request)).ingestion.id)

    async def begin_temporary(self, token: str) -> str:
        """Begins an ingestion with a temporary token; its id."""
        return await self.begin(kind="api", temporary_token=token)

    async def ended(self, id_: str) -> pb.Ingestion:
        """How it ended."""
        return await ended(self.rig, id_, within_s=60)

    def memory(self) -> bytes:
        """All memory that the process may write, one region after the other."""
        return memory_of(self.life.pid)


@asynccontextmanager
async def attacked(
    folder: Path,
    tls: Tls,
    *,
    weakened: str = "",
    oauth: OAuthProfile | None = None,
    allow: str = "",
    timeout_s: float = 3.0,
    environ: dict[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Attacked]:
    """A process that is alive, with its home and temporary files below the folder."""
    for name in ("home", "tmp", "keeps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    api = Api(secret("documenttext"))
    server = HttpsServer(api.handle, tls.server)
    async with (
        server.running(),
        surroundings(
            folder,
            **{
                "ingestion_lease_s": 0.5,
                "extract_workers": 1,
                "egress_allow": ",".join(filter(None, (f"127.0.0.1:{server.port}", allow))),
                "egress_ca_file": tls.ca_file,
                **settings,
            },
        ) as rig,
    ):
        rig.collection()
        wish = {
            "url": f"https://127.0.0.1:{server.port}",
            "oauth": None if oauth is None else asdict(oauth),
            "timeout_s": timeout_s,
            "weakened": weakened,
        }
        own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        own |= {"LIVING_KEEPS": str(folder / "keeps"), **(environ or {})}
        life = Lives(rig, json.dumps(wish), module="tests.attacks.ingest.living", environ=own)
        try:
            await life.begin()
            yield Attacked(rig, life, api, server, timeout_s)
        finally:
            life.close()


def memory_of(pid: int) -> bytes:
    """All memory that a process may write, one region after the other."""
    return b"".join(_regions(pid))


def _regions(pid: int) -> Iterator[bytes]:
    with Path(f"/proc/{pid}/maps").open("rb") as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            found = _MEMORY.match(line)
            if found is None or b"[vvar" in line:
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
    assert os.path.exists(f"/proc/{pid}")
