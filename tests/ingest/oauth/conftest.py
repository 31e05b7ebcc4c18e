"""Two providers, and a running ingest with a source at each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.certificates import TestCa
from tests.ingest.oauth.dance import World, clients_file
from tests.ingest.oauth.providers import GuardedSourceType, OtherSourceType, User, provider
from tests.ingest.rig import Rig, running


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Both servers, once for all tests here."""
    folder = tmp_path_factory.mktemp("providers")
    ca = TestCa.make()
    with (
        provider(folder / "one", ca, ("guarded", "other")) as one,
        # Its access tokens are old as soon as they are given, so that each use refreshes.
        provider(folder / "two", ca, ("guarded", "other"), access_token_s=1) as two,
    ):
        user = User(ca, folder)
        yield World(ca, folder / "user-ca.pem", one, two, user)


@pytest.fixture
async def rig(tmp_path: Path, world: World) -> AsyncIterator[Rig]:
    """A running ingest with a source at each provider."""
    types = [GuardedSourceType(world.one), OtherSourceType(world.two)]
    async with running(
        tmp_path,
        source_types=types,
        ingestion_lease_s=2,
        ingestion_runs=4,
        extract_workers=1,
        oauth_clients_file=clients_file(tmp_path, guarded=world.one, other=world.two),
        egress_allow=f"{world.one.netloc},{world.two.netloc}",
        egress_ca_file=world.ca_file,
    ) as made:
        made.collection()
        yield made
