"""The dance of a connection as tests make it, with two real providers and a user of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from sealcomb.v1 import source_service_pb2 as pb
from tests.certificates import TestCa
from tests.ingest.jobs.rig import call
from tests.ingest.oauth.providers import GuardedSourceType, OtherSourceType, Provider, User
from tests.ingest.rig import Rig, details

REDIRECT = "http://127.0.0.1:53682/callback/guarded"
OTHER_REDIRECT = "http://127.0.0.1:53682/callback/other"


@dataclass
class World:
    """Two providers of one CA, and a user of both."""

    ca: TestCa
    ca_file: Path
    one: Provider
    two: Provider
    user: User


def clients_file(folder: Path, **providers: Provider) -> Path:
    """The operator's clients."""
    path = folder / "clients.json"
    path.write_text(
        json.dumps(
            {
                kind: {"client_id": found.client_id, "client_secret": found.client_secret}
                for kind, found in providers.items()
            }
        )
    )
    return path


def types_of(rig: Rig) -> tuple[GuardedSourceType, OtherSourceType]:
    """The sources of the rig."""
    return rig.source_types


async def begin(rig: Rig, kind: str = "guarded", **fields: Any) -> pb.BeginConnectionResponse:
    """Begins a connection."""
    redirect = REDIRECT if kind == "guarded" else OTHER_REDIRECT
    request = pb.BeginConnectionRequest(**{"kind": kind, "redirect_uri": redirect, **fields})
    response: pb.BeginConnectionResponse = await call(rig, "BeginConnection", request)
    return response


async def complete(rig: Rig, brought: dict[str, str], **changes: str) -> pb.Connection:
    """Completes a connection with what a redirect brought."""
    account = changes.pop("account", None)
    fields = {name: brought.get(name, "") for name in ("state", "code", "iss", "error")}
    request = pb.CompleteConnectionRequest(**{**fields, **changes})
    extra = (account,) if account else ()
    connection: pb.Connection = (await call(rig, "CompleteConnection", request, *extra)).connection
    return connection


async def connect(rig: Rig, world: World, kind: str = "guarded") -> pb.Connection:
    """The whole dance."""
    begun = await begin(rig, kind)
    redirect = REDIRECT if kind == "guarded" else OTHER_REDIRECT
    return await complete(rig, await world.user.grant(begun.authorization_url, redirect))


async def refused(awaitable: Any) -> tuple[str, list[str]]:
    """The reason and fields of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return details(caught.value)
