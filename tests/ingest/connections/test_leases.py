"""One refresher at a time, over one database: leases, fences, and what a lost one may still do."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest

from services.common import ids
from services.common.context import CallContext, Caller, acting_as
from services.common.datakeys import DataKeys
from services.common.errors import Unavailable
from services.common.sealing import DataKey
from services.ingest.connections.credentials import Credentials, Vault
from services.ingest.connections.records import (
    Client,
    ConnectionState,
    Description,
    Revoked,
    Secrets,
    Tokens,
    to_bytes,
)
from services.ingest.connections.store import ConnectionRow, ConnectionStore
from services.ingest.sources.contract import CredentialRefused, OAuthProfile
from services.ingest.store import Store
from tests.keyvault.rig import ManualClock

ACCOUNT = ids.new_id()
ID = ids.new_id()
CLIENT = Client("id", "secret")
PROFILE = OAuthProfile("https://as.example/a", "https://as.example/t", ("read",))


class Keys:
    """One key for everything."""

    key = DataKey(ids.new_id(), bytes(32))

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """The key."""
        return self.key


class Provider:
    """Rotates refresh tokens, and revokes all when one is used twice."""

    def __init__(self) -> None:
        self.expire_s = 1.0
        self.current = "r0"
        self.count = 0
        self.revoked = False
        self.before_answer: Any = None
        self.error: Exception | None = None
        self.given_back: list[str] = []

    async def refresh(self, profile: OAuthProfile, client: Client, refresh_token: str) -> Tokens:
        """The next tokens, for the current refresh token alone."""
        if self.error is not None:
            raise self.error
        if self.revoked or refresh_token != self.current:
            self.revoked = True
            raise CredentialRefused("revoked")
        self.count += 1
        self.current = f"r{self.count}"
        await asyncio.sleep(0.02)
        if self.before_answer is not None:
            await self.before_answer()
        return Tokens(f"a{self.count}", self.current, self.expire_s, 1.0)

    async def revoke(self, profile: OAuthProfile, client: Client, tokens: Tokens) -> Revoked:
        """Takes them back."""
        self.given_back.append(tokens.refresh)
        return Revoked.REVOKED


class World:
    """Several processes' worth of credentials on one database."""

    def __init__(self, database_url: str) -> None:
        self.clock = ManualClock(1000.0)
        self.store = Store.open(database_url)
        self.connections = ConnectionStore(self.store.database)
        self.vault = Vault(DataKeys(Keys(), self.clock))
        self.provider = Provider()

    async def connect(self) -> None:
        """A connection whose token is old."""
        secrets = Secrets(Tokens("a0", "r0", 1.0, 1.0), CLIENT)
        self.connections.add(
            ConnectionRow(
                ID,
                ACCOUNT,
                1,
                ConnectionState.CONNECTED,
                await self.vault.seal(ACCOUNT, ID, "description", 0, to_bytes(Description("x", {}))),
                await self.vault.seal(ACCOUNT, ID, "credential", 1, to_bytes(secrets)),
            )
        )

    def process(self) -> Credentials:
        """Credentials as one process has them."""
        return Credentials(self.connections, self.vault, self.provider, self.clock)

    async def token(self, process: Credentials, refused: str = "") -> str:
        """A usable token."""
        return await process.usable(ACCOUNT, ID, PROFILE, CLIENT, refused)

    def row(self) -> ConnectionRow:
        """The row now."""
        row = self.connections.get(ACCOUNT, ID)
        assert row is not None
        return row


@pytest.fixture
async def world(database_url: str) -> Any:
    """A world with one connection, acting for its account; on each engine."""
    made = World(database_url)
    context = CallContext("keyvault", (), ACCOUNT, "", (), (), "", 0, 1e12, "")
    with acting_as(Caller(context, "text")):
        await made.connect()
        yield made
    made.store.close()


async def test_eight_processes_refresh_once(world: World) -> None:
    """E10: whoever comes second waits for the first, and uses what it stored."""
    processes = [world.process() for _ in range(8)]
    for round_ in range(1, int(os.environ.get("SEALCOMB_TEST_EXPIRIES", "20")) + 1):
        # What is given out is good for this round, however slow somebody is to come for it.
        world.clock.time_s += 1000
        world.provider.expire_s = world.clock.time_s + 500
        tokens = await asyncio.gather(*(world.token(process) for process in processes))
        assert set(tokens) == {f"a{round_}"}
        assert world.provider.count == round_
    assert not world.provider.revoked


async def test_without_the_lease_the_family_is_revoked(world: World) -> None:
    """The twin: with every process its own refresher, the provider ends the grant."""
    world.connections.lease_refresh = lambda row, now_ms, until_ms: 0  # type: ignore[method-assign]
    results = await asyncio.gather(*(world.token(world.process()) for _ in range(8)), return_exceptions=True)
    assert world.provider.revoked
    assert any(isinstance(result, CredentialRefused) for result in results)


async def test_the_new_refresh_token_is_stored_before_the_token_is_used(world: World) -> None:
    """E10: what is given out is durable already, so a kill after it loses nothing."""
    token = await world.token(world.process())
    opened = await world.vault.secrets(world.row())
    assert opened.tokens is not None
    assert (opened.tokens.access, opened.tokens.refresh) == (token, "r1")


async def test_a_refresher_that_lost_its_lease_stores_nothing(world: World) -> None:
    """E10: after a stall the fence of another is the newest; the slow answer is thrown away."""
    row = world.row()
    first = world.connections.lease_refresh(row, 1000, 2000)
    assert world.connections.lease_refresh(row, 1500, 2500) is None
    second = world.connections.lease_refresh(row, 2000, 3000)
    assert first is not None
    assert second is not None
    assert not world.connections.store_credential(row, first, b"slow")
    assert not world.connections.mark_refused(row, first)
    assert world.connections.store_credential(row, second, b"newest")
    assert world.row().credential == b"newest"
    # And nobody refreshes what has been refreshed meanwhile.
    assert world.connections.lease_refresh(row, 9000, 9999) is None


async def test_a_refresh_that_was_begun_is_finished_though_its_job_is_cancelled(world: World) -> None:
    """E10: between the provider's answer and the commit a cancellation changes nothing."""
    process = world.process()
    answered = asyncio.Event()
    go_on = asyncio.Event()

    async def wait() -> None:
        answered.set()
        await go_on.wait()

    world.provider.before_answer = wait
    task = asyncio.create_task(world.token(process))
    await answered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    world.provider.before_answer = None
    go_on.set()
    await process.drain(5)
    assert world.row().version == 2
    assert await world.token(world.process()) in ("a1", "a2")
    assert not world.provider.revoked


async def test_a_provider_in_trouble_keeps_the_connection(world: World) -> None:
    world.provider.error = Unavailable("down")
    with pytest.raises(Unavailable):
        await world.token(world.process())
    assert world.row().state is ConnectionState.CONNECTED
    world.provider.error = None
    assert await world.token(world.process()) == "a1"


async def test_a_dead_grant_is_said_once_and_asked_no_more(world: World) -> None:
    world.provider.error = CredentialRefused("dead")
    with pytest.raises(CredentialRefused):
        await world.token(world.process())
    assert world.row().state is ConnectionState.REFUSED
    world.provider.error = AssertionError("asked again")
    with pytest.raises(CredentialRefused):
        await world.token(world.process())


async def test_a_disconnected_source_gives_no_token(world: World) -> None:
    """A credential in a job's hands is worth nothing once the connection ends."""
    credential = world.process().of(ACCOUNT, ID, PROFILE, CLIENT)
    assert await credential.token() == "a1"
    world.connections.begin_disconnecting(ACCOUNT, ID)
    with pytest.raises(CredentialRefused) as caught:
        await credential.token()
    assert caught.value.reason == "DISCONNECTED"


async def test_a_token_that_was_refused_is_not_given_again(world: World) -> None:
    credential = world.process().of(ACCOUNT, ID, PROFILE, CLIENT)
    first = await credential.token()
    assert await credential.token(refused=True) != first


async def test_a_credential_of_another_version_or_connection_does_not_open(world: World) -> None:
    """D5: what is put back or moved is noticed."""
    row = world.row()
    for changed in (
        replace(row, version=2),
        replace(row, id=ids.new_id()),
        replace(row, account=ids.new_id()),
    ):
        with pytest.raises(Exception, match="does not open"):
            await world.vault.secrets(changed)


async def test_nobody_is_asked_between_the_answer_and_the_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: the key to seal with is at hand before the provider is asked, so keyvault's end loses nothing."""
    world.vault = Vault(DataKeys(Keys(), world.clock))

    async def unreachable(*_arguments: object) -> DataKey:
        raise Unavailable("keyvault is down")

    async def cut() -> None:
        monkeypatch.setattr(Keys, "get_data_key", unreachable)

    world.provider.before_answer = cut
    assert await world.token(world.process()) == "a1"
    assert world.row().version == 2


async def test_tokens_that_come_for_a_connection_that_ended_are_given_back(world: World) -> None:
    """E10: a refresh that crosses a disconnection leaves no live token at the provider."""

    async def disconnect() -> None:
        world.connections.begin_disconnecting(ACCOUNT, ID)

    world.provider.before_answer = disconnect
    with pytest.raises(CredentialRefused) as caught:
        await world.token(world.process())
    assert caught.value.reason == "DISCONNECTED"
    assert world.provider.given_back == ["r1"]


async def test_tokens_of_a_lease_that_was_lost_are_not_given_back(world: World) -> None:
    """The twin: whoever was faster lives on the same grant."""

    async def lose() -> None:
        world.provider.before_answer = None
        sql = "update connections set refresh_fence = refresh_fence + 1, refresh_until_ms = 0"
        with world.store.database.begin() as connection:
            connection.exec_driver_sql(sql)

    world.provider.before_answer = lose
    await asyncio.gather(world.token(world.process()), return_exceptions=True)
    assert world.provider.given_back == []
