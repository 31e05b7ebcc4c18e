"""Workers that are killed while they refresh, at a provider that rotates and ends the grant at any reuse.

The source takes each access token once, so every second request refreshes. A family that is revoked
although its newest token was stored is the failure; one whose answer had come and was not stored yet is the
documented window, and is counted.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sealcomb.v1 import source_service_pb2 as pb
from tests.attacks.ingest.leaks import REDIRECT, clients_file
from tests.attacks.ingest.rig import Attacked, attacked
from tests.ingest.jobs.rig import call, sql
from tests.ingest.oauth.providers import User, provider
from tests.ingest.sources.servers.https import Reply, Request, make_tls


@dataclass
class Refreshes:
    """What became of the families."""

    kills: int = 0
    refreshes: int = 0
    in_window: int = 0
    revoked: int = 0

    @property
    def lost_outside(self) -> int:
        """Families that were revoked without a kill in the window."""
        return max(self.revoked - self.in_window, 0)


async def kill_while_refreshing(folder: Path, kills: int, *, weakened: str = "") -> Refreshes:
    """Two jobs of one connection refresh all the time; their process is killed at random moments."""
    chance, found = random.Random(10), Refreshes()
    (folder / "server").mkdir(parents=True)
    tls = make_tls(folder / "server", ())
    with provider(folder / "provider", tls.ca, ("api",)) as one:
        (folder / "process").mkdir()
        async with attacked(
            folder / "process",
            tls,
            weakened=weakened,
            oauth=one.profile(),
            allow=one.netloc,
            timeout_s=30.0,
            oauth_clients_file=clients_file(folder, one),
        ) as rig:
            _take_tokens_once(rig)
            user = User(tls.ca, folder)
            connection = await _connect(rig, user)
            given = await one.counted("grant.success", type="refresh_token")
            for _ in range(kills):
                await _keep_busy(rig, connection)
                await asyncio.sleep(chance.uniform(0.4, 1.4))
                rig.life.kill()
                # What the provider was at when its client died, it finishes.
                await asyncio.sleep(0.2)
                found.kills += 1
                answered = await one.counted("grant.success", type="refresh_token") - given
                version = _version(rig, connection)
                found.in_window += answered > version - 1
                # As half a minute later: the lease of whoever died in a refresh has lapsed.
                sql(rig.rig, "update connections set refresh_until_ms = 0")
                await rig.life.begin()
                if answered > version - 1 or _state(rig, connection) != "connected":
                    # Used once more it is revoked; whoever reads the log learns how often that was.
                    await _keep_busy(rig, connection)
                    await asyncio.sleep(1.0)
                    found.refreshes += answered
                    connection = await _connect(rig, user)
                    given = await one.counted("grant.success", type="refresh_token")
            found.refreshes += await one.counted("grant.success", type="refresh_token") - given
            found.revoked = await one.counted("grant.revoked")
    return found


def _take_tokens_once(rig: Attacked) -> None:
    taken: set[str] = set()
    handle = rig.api.handle

    def once(request: Request) -> Reply:
        token = request.headers.get("authorization", "")
        if token in taken:
            return Reply(401)
        taken.add(token)
        return handle(request)

    rig.api.items = 200
    rig.server.handler = once


async def _connect(rig: Attacked, user: User) -> str:
    begin = pb.BeginConnectionRequest(kind="api", redirect_uri=REDIRECT)
    begun = await call(rig.rig, "BeginConnection", begin)
    brought = await user.grant(begun.authorization_url, REDIRECT)
    assert brought["state"] == parse_qs(urlsplit(begun.authorization_url).query)["state"][0]
    fields = {name: brought[name] for name in ("state", "code", "iss")}
    made = await call(rig.rig, "CompleteConnection", pb.CompleteConnectionRequest(**fields))
    return str(made.connection.id)


async def _keep_busy(rig: Attacked, connection: str) -> None:
    """Two jobs, if the connection may still be used."""
    sql(rig.rig, "update ingestions set state = 'cancelled', fence = fence + 1")
    if _state(rig, connection) == "connected":
        for _ in range(2):
            await rig.begin(connection_id=connection)


def _version(rig: Attacked, connection: str) -> int:
    return int(sql(rig.rig, "select version from connections where id = :id", id=connection)[0][0])


def _state(rig: Attacked, connection: str) -> str:
    return str(sql(rig.rig, "select state from connections where id = :id", id=connection)[0][0])
