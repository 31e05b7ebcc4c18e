"""Connections: begun, completed, listed, ended.

    begin     the flow is sealed under the new connection's own key and found by its state alone
    complete  the state is used up first, then `iss` is checked, and only then the code is sent
    end       no job may use it, its jobs stop, its key is destroyed, the provider is told

A state belongs to the account that began it: to everybody else it does not exist. The credential is in
memory while the provider is told, since its key is gone by then; what the provider said is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog

from services.common import ids
from services.common.clock import Clock
from services.common.context import current_account
from services.common.errors import FailedPrecondition, NotFound, SealcombError, invalid
from services.common.sealing import OpenFailed
from services.ingest.connections.catalogue import Catalogue
from services.ingest.connections.credentials import Vault
from services.ingest.connections.oauth import GrantPending, OAuth, ProviderRefused, authorization_url
from services.ingest.connections.records import (
    Client,
    Connection,
    ConnectionState,
    Description,
    Flow,
    Revoked,
    Secrets,
    Tokens,
    description_of,
    flow_of,
    to_bytes,
)
from services.ingest.connections.redirects import Redirects
from services.ingest.connections.store import ConnectionRow, ConnectionStore, FlowRow, hash_of
from services.ingest.connections.unbroken import Unbroken
from services.ingest.sources.contract import CredentialRefused, OAuthProfile

FLOW_LIFE_S = 600.0
# Providers leave these out of what they say was granted, or grant them under other names.
_SCOPES_UNSAID = frozenset({"offline_access", "openid"})
_log = structlog.get_logger("connections")


class Keys(Protocol):
    """What ends a connection's key."""

    async def destroy_resource(self, resource: str) -> None:
        """Destroys all data keys of a resource, for good."""


class ConnectionJobs(Protocol):
    """The ingestions of a connection."""

    async def disconnect(self, connection_id: str, *, delete_documents: bool) -> tuple[int, int]:
        """Cancels them; how many, and how many documents are being deleted."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants to connect to."""

    kind: str
    settings: Mapping[str, Any] = field(repr=False)
    redirect_uri: str = ""
    client: Client | None = None
    device: bool = False
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Begun:
    """What the caller needs to go on; `connection` is set where nothing is left to do."""

    connection_id: str
    authorization_url: str = field(default="", repr=False)
    state: str = field(default="", repr=False)
    expire_ms: int = 0
    scopes_asked: tuple[str, ...] = ()
    user_code: str = ""
    verification_uri: str = ""
    poll_s: int = 0
    connection: Connection | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the redirect brought."""

    state: str = field(repr=False)
    code: str = field(default="", repr=False)
    iss: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """What ending a connection did."""

    revoked: Revoked
    cancelled: int
    deleting: int


class Connections:
    """Acts on connections within the account of the call in progress."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        redirects: Redirects,
        store: ConnectionStore,
        vault: Vault,
        oauth: OAuth,
        keys: Keys,
        jobs: ConnectionJobs,
        clock: Clock,
        new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(64),
    ) -> None:
        self._catalogue = catalogue
        self._redirects = redirects
        self._store = store
        self._vault = vault
        self._oauth = oauth
        self._keys = keys
        self._jobs = jobs
        self._clock = clock
        self._new_secret = new_secret
        self._unbroken = Unbroken()

    async def begin(self, wish: Wish) -> Begun:
        """Begins a connection. Raises InvalidArgument, ResourceExhausted, ProviderRefused."""
        source = self._catalogue.type_of(wish.kind)
        settings = self._catalogue.settings_of(wish.kind, wish.settings).model_dump(mode="json")
        await self._clear_expired()
        profile = source.oauth
        if profile is None or wish.secret:
            if wish.secret and not source.token_form:
                raise invalid("secret", "is not for this source, which takes none")
            return await self._connect_at_once(wish, settings, needs_secret=bool(source.token_form))
        client = wish.client or self._catalogue.client_of(wish.kind)
        if client is None:
            raise invalid(
                "client", "is missing: the operator has no client for this source", reason="CLIENT_MISSING"
            )
        flow = Flow(
            connection_id=ids.new_id(),
            description=Description(
                wish.kind, settings, scopes_asked=profile.scopes, own_client=wish.client is not None
            ),
            redirect_uri="" if wish.device else self._redirects.check(wish.redirect_uri, wish.kind),
            client=wish.client,
            verifier=self._new_secret(),
        )
        if wish.device:
            return await self._begin_device(flow, profile, client)
        state = self._new_secret()
        expire_ms = await self._keep_flow(flow, state, FLOW_LIFE_S)
        url = authorization_url(profile, client, flow.redirect_uri, state, flow.verifier)
        return Begun(flow.connection_id, url, state, expire_ms, profile.scopes)

    async def complete(self, grant: Grant) -> Connection:
        """Completes a connection, even if the caller leaves: a code that was sent must not be in vain.

        Raises InvalidArgument (state, iss), ProviderRefused, GrantPending.
        """
        # A name of its own: of two who complete, one wins.
        return await self._unbroken.run(object(), lambda: self._complete(grant))

    async def _complete(self, grant: Grant) -> Connection:
        account, state_hash = current_account(), hash_of(grant.state)
        row = await asyncio.to_thread(self._store.find_flow, account, state_hash, self._now_ms())
        if row is None:
            raise _state_invalid()
        raw = await self._vault.open(account, row.connection_id, "flow", 0, row.sealed)
        flow = flow_of(raw)
        profile = self._catalogue.type_of(flow.description.kind).oauth
        client = flow.client or self._catalogue.client_of(flow.description.kind)
        if profile is None or client is None:
            raise FailedPrecondition("the operator no longer has a client for this source; begin again")
        if flow.device_code:
            tokens = await self._poll(profile, client, flow, row)
        else:
            await self._use_up(row)
            tokens = await self._redeem(profile, client, flow, grant)
        return await self._connect(flow, profile, client, tokens)

    async def list_page(self, after: tuple[int, str], size: int) -> list[Connection]:
        """Connections in order of creation, those after a position."""
        account = current_account()
        rows = await asyncio.to_thread(self._store.page, account, after, size)
        return [await self._shown(row) for row in rows]

    async def get(self, connection_id: str) -> Connection:
        """One connection. Raises NotFound."""
        return await self._shown(await self._row(connection_id))

    async def disconnect(self, connection_id: str, *, delete_documents: bool) -> Disconnected:
        """Ends a connection for good, even if the caller leaves; it may be repeated. Raises NotFound."""
        row = await self._row(connection_id)
        return await self._unbroken.run(
            (row.account, row.id, delete_documents),
            lambda: self._disconnect(row.account, row.id, delete_documents=delete_documents),
        )

    async def drain(self, timeout_s: float) -> None:
        """Waits for what was begun at a provider."""
        await self._unbroken.drain(timeout_s)

    async def _disconnect(self, account: str, id_: str, *, delete_documents: bool) -> Disconnected:
        await asyncio.to_thread(self._store.begin_disconnecting, account, id_)
        # Only now: a refresh could have replaced the credential until here.
        row = await self._row(id_)
        opened: tuple[Description, Secrets] | None = None
        # A key that an interrupted call destroyed opens nothing any more.
        with contextlib.suppress(NotFound, OpenFailed):
            opened = ((await self._shown(row)).description, await self._vault.secrets(row))
        cancelled, deleting = await self._jobs.disconnect(row.id, delete_documents=delete_documents)
        await self._keys.destroy_resource(row.id)
        revoked = Revoked.FAILED if opened is None else await self._revoke(*opened)
        await asyncio.to_thread(self._store.remove, account, row.id)
        _log.info("disconnected", account=account, resource=row.id, state=revoked.value)
        return Disconnected(revoked, cancelled, deleting)

    async def _begin_device(self, flow: Flow, profile: OAuthProfile, client: Client) -> Begun:
        if not profile.device_url:
            raise invalid("device", "is not possible: this provider has no device flow")
        device = await self._oauth.begin_device(profile, client)
        state = self._new_secret()
        life_s = min(FLOW_LIFE_S, device.expire_s)
        expire_ms = await self._keep_flow(replace(flow, device_code=device.device_code), state, life_s)
        return Begun(
            flow.connection_id,
            state=state,
            expire_ms=expire_ms,
            scopes_asked=profile.scopes,
            user_code=device.user_code,
            verification_uri=device.verification_uri,
            poll_s=device.poll_s,
        )

    async def _keep_flow(self, flow: Flow, state: str, life_s: float) -> int:
        account, now_ms = current_account(), self._now_ms()
        expire_ms = now_ms + int(life_s * 1000)
        sealed = await self._vault.seal(account, flow.connection_id, "flow", 0, to_bytes(flow))
        row = FlowRow(hash_of(state), account, flow.connection_id, expire_ms, sealed)
        await asyncio.to_thread(self._store.add_flow, row, now_ms)
        return expire_ms

    async def _connect_at_once(self, wish: Wish, settings: Mapping[str, Any], *, needs_secret: bool) -> Begun:
        if needs_secret and not wish.secret:
            raise invalid("secret", "is missing; see the source's token_form")
        connection = await self._add(
            ids.new_id(), Description(wish.kind, settings), Secrets(None, None, wish.secret)
        )
        return Begun(connection.id, connection=connection)

    async def _poll(self, profile: OAuthProfile, client: Client, flow: Flow, row: FlowRow) -> Tokens:
        try:
            tokens = await self._oauth.poll_device(profile, client, flow.device_code)
        except GrantPending:
            raise
        except (CredentialRefused, ProviderRefused):
            await self._use_up(row)
            await self._keys.destroy_resource(flow.connection_id)
            raise
        await self._use_up(row)
        return tokens

    async def _redeem(self, profile: OAuthProfile, client: Client, flow: Flow, grant: Grant) -> Tokens:
        try:
            # RFC 9207: before the code goes anywhere, that it comes from whom it is for.
            _check_issuer(profile, grant.iss)
            if grant.error or not grant.code:
                raise ProviderRefused("access was not granted", reason="ACCESS_NOT_GRANTED")
            return await self._oauth.exchange(profile, client, grant.code, flow.verifier, flow.redirect_uri)
        except SealcombError:
            await self._keys.destroy_resource(flow.connection_id)
            raise

    async def _connect(self, flow: Flow, profile: OAuthProfile, client: Client, tokens: Tokens) -> Connection:
        missing = set(profile.scopes) - set(tokens.scopes) - _SCOPES_UNSAID
        if tokens.scopes and missing:
            await self._oauth.revoke(profile, client, tokens)
            await self._keys.destroy_resource(flow.connection_id)
            raise FailedPrecondition(
                f"less was granted than the source needs: {' '.join(sorted(missing))}; connect again",
                reason="SCOPES_MISSING",
            )
        description = replace(flow.description, scopes_granted=tokens.scopes)
        try:
            return await self._add(flow.connection_id, description, Secrets(tokens, flow.client))
        except SealcombError:
            # Nobody would know of a grant that is not kept.
            await self._oauth.revoke(profile, client, tokens)
            raise

    async def _add(self, id_: str, description: Description, opened: Secrets) -> Connection:
        account, now_ms = current_account(), self._now_ms()
        row = ConnectionRow(
            id=id_,
            account=account,
            create_ms=now_ms,
            state=ConnectionState.CONNECTED,
            description=await self._vault.seal(account, id_, "description", 0, to_bytes(description)),
            credential=await self._vault.seal(account, id_, "credential", 1, to_bytes(opened)),
            version=1,
        )
        await asyncio.to_thread(self._store.add, row)
        return Connection(id_, description, row.state, now_ms)

    async def _use_up(self, row: FlowRow) -> None:
        if not await asyncio.to_thread(self._store.take_flow, row.account, row.state_hash):
            raise _state_invalid()

    async def _revoke(self, description: Description, opened: Secrets) -> Revoked:
        profile = self._catalogue.type_of(description.kind).oauth
        client = opened.client or self._catalogue.client_of(description.kind)
        if opened.tokens is None or profile is None:
            return Revoked.NOT_SUPPORTED
        if client is None:
            return Revoked.FAILED
        return await self._oauth.revoke(profile, client, opened.tokens)

    async def _clear_expired(self) -> None:
        """Takes the account's own leavings away: flows that were never completed, and their keys."""
        rows = await asyncio.to_thread(self._store.expired_flows, current_account(), self._now_ms())
        for row in rows:
            await self._keys.destroy_resource(row.connection_id)
            await asyncio.to_thread(self._store.take_flow, row.account, row.state_hash)

    async def _row(self, connection_id: str) -> ConnectionRow:
        row = None
        if ids.is_id(connection_id):
            row = await asyncio.to_thread(self._store.get, current_account(), connection_id)
        if row is None:
            raise NotFound("no such connection", reason="CONNECTION_NOT_FOUND")
        return row

    async def _shown(self, row: ConnectionRow) -> Connection:
        description = Description("", {})
        try:
            raw = await self._vault.open(row.account, row.id, "description", 0, row.description)
            description = description_of(raw)
        except NotFound:
            # Being disconnected: its key is gone, and with it what it was.
            if row.state is not ConnectionState.DISCONNECTING:
                raise
        return Connection(row.id, description, row.state, row.create_ms)

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


def _check_issuer(profile: OAuthProfile, iss: str) -> None:
    if profile.issuer:
        right = iss == profile.issuer
    else:
        # Providers that are not known to send one may begin to: it must be their own.
        place = urlsplit(profile.authorize_url)
        right = not iss or iss.rstrip("/") == f"{place.scheme}://{place.netloc}"
    if not right:
        raise invalid(
            "iss", "is not the provider that the connection was begun with", reason="ISSUER_MISMATCH"
        )


def _state_invalid() -> SealcombError:
    return invalid("state", "is unknown, used up or expired; begin again", reason="STATE_INVALID")
