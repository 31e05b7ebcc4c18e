"""How many copies of a temporary token are in the memory of a process after its ingestion has ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sealcomb.v1 import ingestion_service_pb2 as pb
from tests.attacks.ingest.rig import attacked, secret
from tests.ingest.sources.servers.https import make_tls

# What services.standalone gives ingest: freed memory is overwritten at once.
WIPED = {"GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"}
_HALF = 20


async def copies(
    folder: Path, *, weakened: str = "", environ: dict[str, str] | None = None, wait_s: float = 0.5
) -> tuple[int, int]:
    """Whole copies or halves of the token while it is used, and after the end, whichever are more."""
    (folder / "server").mkdir(parents=True)
    tls = make_tls(folder / "server", ())
    async with attacked(folder / "process", tls, weakened=weakened, environ=environ, timeout_s=30.0) as found:
        token = secret("temporarytoken")
        found.api.delay_s = 1.0
        id_ = await found.begin_temporary(token)
        await found.api.asked.wait()
        used = _count(found.memory(), token.encode())
        found.api.delay_s = 0.0
        done = await found.ended(id_)
        assert done.state == pb.INGESTION_STATE_SUCCEEDED, done
        assert f"Bearer {token}" in found.api.seen
        await asyncio.sleep(wait_s)
        return used, _count(found.memory(), token.encode())


def _count(memory: bytes, token: bytes) -> int:
    return max(memory.count(part) for part in (token, token[:_HALF], token[-_HALF:]))
