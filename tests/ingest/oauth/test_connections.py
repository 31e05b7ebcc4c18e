"""Connections against real, certified OAuth servers: granted, used, refreshed, revoked, and attacked."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sealcomb.v1 import ingestion_service_pb2 as ingestion
from sealcomb.v1 import source_service_pb2 as pb
from services.ingest.connections import store
from services.ingest.connections.service import Connections
from tests.attacks.canary import files_below
from tests.ingest.jobs.rig import call, create, ended, sql, texts
from tests.ingest.oauth.dance import REDIRECT, World, begin, complete, connect, refused, types_of
from tests.ingest.rig import OTHER_ACCOUNT, Rig, eventually


async def test_a_granted_connection_brings_documents_in(rig: Rig, world: World) -> None:
    begun = await begin(rig)
    query = parse_qs(urlsplit(begun.authorization_url).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["scope"] == ["openid offline_access docs.read"]
    assert len(query["state"][0]) >= 43
    connection = await complete(rig, await world.user.grant(begun.authorization_url, REDIRECT))
    assert connection.state == pb.CONNECTION_STATE_CONNECTED
    # E12: what was granted stands beside what was asked for.
    assert set(connection.scopes_asked) == {"openid", "offline_access", "docs.read"}
    assert "docs.read" in connection.scopes_granted
    done = await ended(rig, (await create(rig, connection_id=connection.id)).id)
    assert done.state == ingestion.INGESTION_STATE_SUCCEEDED
    assert len(texts(rig)) == 2


async def test_nothing_of_a_grant_is_readable_on_disk(rig: Rig, world: World) -> None:
    """E1 for kept tokens: sealed, and so are settings and scopes."""
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    await complete(rig, brought)
    state = parse_qs(urlsplit(begun.authorization_url).query)["state"][0]
    written = b"".join(path.read_bytes() for path in files_below(rig.folder) if path.suffix != ".json")
    for secret in (state, brought["code"], world.one.client_secret, "docs.read", "guarded"):
        assert secret.encode() not in written


async def test_a_state_is_for_one_use(rig: Rig, world: World) -> None:
    """E5: none, a made-up one, one used twice, an expired one."""
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    assert (await refused(complete(rig, brought, state="")))[1] == ["state"]
    assert await refused(complete(rig, brought, state="x" * 86)) == ("STATE_INVALID", ["state"])
    await complete(rig, brought)
    grants = await world.one.counted("grant.success")
    assert await refused(complete(rig, brought)) == ("STATE_INVALID", ["state"])
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    sql(rig, "update connection_flows set expire_ms = 1")
    assert await refused(complete(rig, brought)) == ("STATE_INVALID", ["state"])
    assert await world.one.counted("grant.success") == grants


async def test_a_flow_is_of_the_account_that_began_it(rig: Rig, world: World) -> None:
    """E5, E9: to another account the state does not exist, and trying it uses nothing up."""
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    refusal = await refused(complete(rig, brought, account=OTHER_ACCOUNT))
    assert refusal == await refused(complete(rig, {**brought, "state": "y" * 86}, account=OTHER_ACCOUNT))
    assert (await complete(rig, brought)).id == begun.connection_id


async def test_of_two_who_complete_one_wins(rig: Rig, world: World) -> None:
    """E5: the state is used up before the code is sent, so the code is sent once."""
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    before = await world.one.counted("request", path="/token")
    results = await asyncio.gather(*(complete(rig, brought) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, pb.Connection) for result in results) == 1
    assert await world.one.counted("request", path="/token") == before + 1


async def test_a_code_of_another_provider_goes_nowhere(rig: Rig, world: World) -> None:
    """E7: mixed up by an attacker, the code of the one never reaches the token endpoint of the other."""
    honest, attacked = await begin(rig, "guarded"), await begin(rig, "other")
    brought = await world.user.grant(honest.authorization_url, REDIRECT)
    state = parse_qs(urlsplit(attacked.authorization_url).query)["state"][0]
    before = await world.two.counted("request", path="/token")
    assert await refused(complete(rig, brought, state=state)) == ("ISSUER_MISMATCH", ["iss"])
    # Without `iss`, from a provider that always sends one, it is no better.
    attacked = await begin(rig, "other")
    state = parse_qs(urlsplit(attacked.authorization_url).query)["state"][0]
    assert await refused(complete(rig, brought, state=state, iss="")) == ("ISSUER_MISMATCH", ["iss"])
    assert await world.two.counted("request", path="/token") == before
    # The right one goes on as if nothing had happened.
    assert (await complete(rig, brought)).kind == "guarded"


async def test_without_the_issuer_check_the_code_would_be_sent(
    rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of E7."""
    from services.ingest.connections import service

    monkeypatch.setattr(service, "_check_issuer", lambda _profile, _iss: None)
    honest, attacked = await begin(rig, "guarded"), await begin(rig, "other")
    brought = await world.user.grant(honest.authorization_url, REDIRECT)
    state = parse_qs(urlsplit(attacked.authorization_url).query)["state"][0]
    before = await world.two.counted("request", path="/token")
    assert (await refused(complete(rig, brought, state=state)))[0] == "CREDENTIAL_REFUSED"
    assert await world.two.counted("request", path="/token") == before + 1


async def test_a_verifier_of_another_flow_redeems_nothing(
    rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E6: the provider checks the challenge; a code that was stolen without its verifier is worth nothing."""
    first, second = await begin(rig), await begin(rig)
    stolen = await world.user.grant(first.authorization_url, REDIRECT)
    state = parse_qs(urlsplit(second.authorization_url).query)["state"][0]
    assert (await refused(complete(rig, stolen, state=state)))[0] == "CREDENTIAL_REFUSED"


async def test_a_provider_that_wants_a_challenge_refuses_one_that_was_stripped(
    rig: Rig, world: World
) -> None:
    """E6: the downgrade is noticed by the other side as well."""
    begun = await begin(rig)
    url = begun.authorization_url.replace("code_challenge", "x_challenge")
    brought = await world.user.grant(url, REDIRECT)
    assert brought["error"] == "invalid_request"
    assert (await refused(complete(rig, brought)))[0] == "ACCESS_NOT_GRANTED"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://127.0.0.1:53682/callback/other",
        "http://127.0.0.1:53682/callback/guarded/",
        "http://127.0.0.1:53682/callback/guarded?x=1",
        "http://127.0.0.1:99999/callback/guarded",
        "http://127.0.0.1/callback/guarded",
        "http://127.0.0.1.evil.example:80/callback/guarded",
        "http://127.0.0.1:80@evil.example/callback/guarded",
        "http://localhost:53682/callback/guarded",
        "https://127.0.0.1:53682/callback/guarded",
        "http://127.0.0.1:53682/callback/guarded#f",
        "http://127.0.0.1:53682/callback/../callback/guarded",
        "http://127.0.0.1:53682//evil.example/callback/guarded",
        "https://app.example/connected/../evil",
        "https://app.example/connected/",
        "https://app.example/Connected",
        "https://app.example.evil.example/connected",
        "javascript:alert(1)",
        "https://evil.example/",
    ],
)
async def test_a_redirect_that_is_not_registered_is_refused(rig: Rig, address: str) -> None:
    """E8: the whole string is compared; loopback alone has a free port, and a path of each source's own."""
    assert await refused(begin(rig, redirect_uri=address)) == ("REDIRECT_NOT_REGISTERED", ["redirect_uri"])


async def test_tokens_are_refreshed_one_at_a_time(rig: Rig, world: World) -> None:
    """E10: eight at once with old tokens, rotation and reuse detection: no family is revoked."""
    other = types_of(rig)[1]
    other.items = 6
    connection = await connect(rig, world, "other")
    rounds = int(os.environ.get("SEALCOMB_TEST_REFRESHES", "2"))
    before = {name: await world.two.counted(name) for name in ("grant.revoked", "grant.error")}
    for _ in range(rounds):
        await asyncio.sleep(1.1)
        begun = [await create(rig, connection_id=connection.id) for _ in range(4)]
        for one in begun:
            done = await ended(rig, one.id)
            assert done.state == ingestion.INGESTION_STATE_SUCCEEDED
    assert await world.two.counted("grant.success", type="refresh_token") >= rounds
    assert before == {name: await world.two.counted(name) for name in before}


async def test_the_provider_notices_a_refresh_token_that_is_used_twice(rig: Rig, world: World) -> None:
    """The twin of E10: with an older credential put back, the family is revoked, which shows."""
    connection = await connect(rig, world, "other")
    before = sql(rig, "select credential, version from connections")[0]
    await asyncio.sleep(1.1)
    done = await ended(rig, (await create(rig, connection_id=connection.id)).id)
    assert done.state == ingestion.INGESTION_STATE_SUCCEEDED
    assert sql(rig, "select version from connections")[0][0] > before.version
    sql(rig, "update connections set credential = :c, version = :v", c=before.credential, v=before.version)
    revoked = await world.two.counted("grant.revoked")
    done = await ended(rig, (await create(rig, connection_id=connection.id)).id)
    assert (done.state, done.reason) == (ingestion.INGESTION_STATE_FAILED, "CREDENTIAL_REFUSED")
    assert await world.two.counted("grant.revoked") == revoked + 1
    shown = (await call(rig, "ListConnections", pb.ListConnectionsRequest())).connections
    assert [one.state for one in shown] == [pb.CONNECTION_STATE_REFUSED]
    request = ingestion.CreateIngestionRequest(collection="notes", connection_id=connection.id)
    assert (await refused(call(rig, "CreateIngestion", request)))[0] == "CONNECTION_REFUSED"


async def test_a_provider_that_no_longer_refreshes_ends_the_job(rig: Rig, world: World) -> None:
    """A typed end, and what was indexed stays."""
    other = types_of(rig)[1]
    connection = await connect(rig, world, "other")
    await ended(rig, (await create(rig, connection_id=connection.id)).id)
    other.oauth = world.two.profile(token_url=f"{world.two.issuer}/no-such-endpoint")
    await asyncio.sleep(1.1)
    done = await ended(rig, (await create(rig, connection_id=connection.id)).id)
    assert (done.state, done.reason) == (ingestion.INGESTION_STATE_FAILED, "PROVIDER_REFUSED")
    assert len(texts(rig)) == 2


async def test_a_device_is_connected_by_a_code(rig: Rig, world: World) -> None:
    """RFC 8628: pending until the user has agreed, then once."""
    begun = await begin(rig, redirect_uri="", device=True)
    assert begun.user_code
    assert not begun.authorization_url
    brought = {"state": begun.state}
    assert (await refused(complete(rig, brought)))[0] == "AUTHORIZATION_PENDING"
    await world.user.enter(begun.verification_uri, begun.user_code)
    connection = await complete(rig, brought)
    assert connection.state == pb.CONNECTION_STATE_CONNECTED
    assert await refused(complete(rig, brought)) == ("STATE_INVALID", ["state"])


async def test_an_accounts_own_client_is_used_and_sealed(rig: Rig, world: World) -> None:
    client = pb.OAuthClient(id=world.one.client_id, secret=world.one.client_secret)
    begun = await begin(rig, client=client)
    connection = await complete(rig, await world.user.grant(begun.authorization_url, REDIRECT))
    assert connection.own_client
    wrong = pb.OAuthClient(id=world.one.client_id, secret="not the secret")
    begun = await begin(rig, client=wrong)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    assert (await refused(complete(rig, brought)))[0] == "PROVIDER_REFUSED"


async def test_less_than_was_asked_for_is_no_connection(rig: Rig, world: World) -> None:
    """E12: a consent that was swapped for a smaller one is refused, named, and revoked at the provider."""
    guarded = types_of(rig)[0]
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    guarded.oauth = world.one.profile(scopes=("openid", "offline_access", "docs.read", "docs.write"))
    before = await world.one.counted("request", path="/token/revocation")
    assert (await refused(complete(rig, brought)))[0] == "SCOPES_MISSING"
    assert await world.one.counted("request", path="/token/revocation") > before
    assert not (await call(rig, "ListConnections", pb.ListConnectionsRequest())).connections


async def test_a_grant_that_cannot_be_kept_is_revoked(
    rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: what nobody would know of must not live on at the provider."""
    monkeypatch.setattr(store, "CONNECTIONS_MAX", 0)
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    before = await world.one.counted("request", path="/token/revocation")
    assert (await refused(complete(rig, brought)))[0] == "CONNECTIONS_MAX"
    assert await world.one.counted("request", path="/token/revocation") == before + 2


async def test_a_code_that_was_sent_becomes_a_connection_though_its_caller_leaves(
    rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: between the provider's answer and the row a cancellation changes nothing."""
    begun = await begin(rig)
    brought = await world.user.grant(begun.authorization_url, REDIRECT)
    reached, go_on = asyncio.Event(), asyncio.Event()
    connect_now = Connections._connect

    async def wait(self: Connections, *arguments: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await connect_now(self, *arguments)

    monkeypatch.setattr(Connections, "_connect", wait)
    task = asyncio.create_task(complete(rig, brought))
    await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go_on.set()
    await eventually(lambda: bool(sql(rig, "select 1 from connections")))
    shown = (await call(rig, "ListConnections", pb.ListConnectionsRequest())).connections
    assert [one.state for one in shown] == [pb.CONNECTION_STATE_CONNECTED]
