"""Workers that are killed while they fetch with temporary tokens: none may go on by itself afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.ingest.rig import attacked, secret
from tests.ingest.jobs.rig import sql
from tests.ingest.rig import eventually
from tests.ingest.sources.servers.https import make_tls

AT_ONCE = 20
_LIVE = "select count(*) from ingestions where state in ('running', 'queued')"


@dataclass
class LostTokens:
    """Jobs that lost their worker in mid-fetch, those that asked for a token, those that used the old one."""

    killed: int = 0
    waiting: int = 0
    used_again: int = 0


async def kill_in_mid_fetch(folder: Path, rounds: int, *, weakened: str = "") -> LostTokens:
    """So many times: twenty jobs fetch at once, and their process is killed."""
    (folder / "server").mkdir(parents=True)
    tls = make_tls(folder / "server", ())
    found = LostTokens()
    async with attacked(
        folder / "process", tls, weakened=weakened, timeout_s=60.0, ingestion_runs=AT_ONCE
    ) as rig:
        rig.api.trouble, rig.api.items = "silent", 1
        for _ in range(rounds):
            tokens = [secret("temporarytoken") for _ in range(AT_ONCE)]
            for token in tokens:
                await rig.begin_temporary(token)
            shown = {f"Bearer {token}" for token in tokens}
            # The listing and the item: every job is in the middle of its fetch.
            await eventually(lambda: _all_fetch(rig.api.seen, shown), 60.0)  # noqa: B023  (awaited here)
            rig.life.kill()
            before = len(rig.api.seen)
            await rig.life.begin()
            found.killed += AT_ONCE
            if not weakened:
                await eventually(lambda: sql(rig.rig, _LIVE)[0][0] == 0, 60.0)
            await asyncio.sleep(1.5 if weakened else 0.3)
            waiting = "select count(*) from ingestions where state = 'needs token' and reason = 'TOKEN_LOST'"
            found.waiting += sql(rig.rig, waiting)[0][0]
            found.used_again += len(shown & set(rig.api.seen[before:]))
            sql(rig.rig, "update ingestions set state = 'cancelled', fence = fence + 1")
    return found


def _all_fetch(seen: list[str], shown: set[str]) -> bool:
    return all(seen.count(one) >= 2 for one in shown)
