"""What sources ask for their token: a connection's credential, or a temporary token.

A connection's tokens are opened when they are asked for and refreshed by one refresher at a time: a
lease on the row, with a fence, among processes and jobs alike. A new refresh token is stored before
the new access token is used, and the key to seal it is at hand before the provider is asked, so a crash
loses at most what lies between the provider's answer and one commit; a provider that detects reuse then
ends the grant, and the connection says REFUSED. What comes for a connection that ended meanwhile is revoked.

A temporary token lives in one holder in memory. It cannot be serialised, copied or printed, and is
overwritten at the end as far as Python lets us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn, Protocol

from services.common.clock import Clock
from services.common.datakeys import DataKeys
from services.common.errors import Kind, NotFound, SealcombError, Unavailable
from services.common.sealing import Identity, key_id_of, open_sealed, seal
from services.ingest.connections.oauth import ProviderRefused
from services.ingest.connections.records import (
    PURPOSE,
    Client,
    ConnectionState,
    Revoked,
    Secrets,
    Tokens,
    secrets_of,
    to_bytes,
)
from services.ingest.connections.store import ConnectionRow
from services.ingest.connections.unbroken import Unbroken
from services.ingest.sources.contract import CredentialRefused, OAuthProfile

_EARLY_S = 60.0
_LEASE_S = 30.0
_WAIT_S_MAX = 40.0
_LOOK_EVERY_S = 0.1


class TemporaryToken:
    """A caller's token for one fetch: in this process's memory and nowhere else."""

    __slots__ = ("_secret",)

    def __init__(self, text: str) -> None:
        self._secret = bytearray(text.encode())

    async def token(self, *, refused: bool = False) -> str:
        """The token. Raises CredentialRefused once it was refused or wiped: there is no other one."""
        if refused:
            self.wipe()
        if not self._secret:
            raise CredentialRefused("the temporary token is no longer accepted; send a new one")
        return self._secret.decode()

    def wipe(self) -> None:
        """Overwrites and forgets it."""
        for place in range(len(self._secret)):
            self._secret[place] = 0
        self._secret.clear()

    def __repr__(self) -> str:
        return "TemporaryToken(...)"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a temporary token is not serialisable")

    __reduce__ = __copy__ = __deepcopy__ = __getstate__ = __reduce_ex__  # type: ignore[assignment]


class CredentialStore(Protocol):
    """Where credentials are kept; blocks."""

    def get(self, account: str, id_: str) -> ConnectionRow | None:
        """A connection."""

    def lease_refresh(self, row: ConnectionRow, now_ms: int, until_ms: int) -> int | None:
        """The fence of the one who may refresh this version."""

    def store_credential(self, row: ConnectionRow, fence: int, sealed: bytes) -> bool:
        """Replaces the credential, for the newest fence."""

    def release_refresh(self, row: ConnectionRow, fence: int) -> bool:
        """Gives the lease back."""

    def mark_refused(self, row: ConnectionRow, fence: int) -> bool:
        """The provider refused the grant."""


class Refresher(Protocol):
    """A provider's token endpoint."""

    async def refresh(self, profile: OAuthProfile, client: Client, refresh_token: str) -> Tokens:
        """New tokens."""

    async def revoke(self, profile: OAuthProfile, client: Client, tokens: Tokens) -> Revoked:
        """Tells the provider that tokens are not wanted. Never raises for what a provider does."""


class Vault:
    """Seals and opens what connections are made of, under the current caller's context."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    async def seal(self, account: str, id_: str, kind: str, version: int, raw: bytes) -> bytes:
        """The bytes, sealed under the connection's own key."""
        return (await self.sealer(account, id_, kind, version))(raw)

    async def sealer(self, account: str, id_: str, kind: str, version: int) -> Callable[[bytes], bytes]:
        """What seals later, without asking anybody any more."""
        key = await self._keys.current(id_, PURPOSE)
        identity = Identity(account, id_, kind, version=version)
        return lambda raw: seal(key, identity, raw)

    async def open(self, account: str, id_: str, kind: str, version: int, sealed: bytes) -> bytes:
        """The bytes again. Raises OpenFailed, and NotFound once the key is destroyed."""
        try:
            key = await self._keys.by_id(id_, PURPOSE, key_id_of(sealed))
        except SealcombError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            # The one kind that is acted on by its type.
            raise NotFound(error.message, reason=error.reason) from None
        return open_sealed(key, Identity(account, id_, kind, version=version), sealed)

    async def secrets(self, row: ConnectionRow) -> Secrets:
        """What opens a connection's source."""
        raw = await self.open(row.account, row.id, "credential", row.version, row.credential)
        return secrets_of(raw)


class Credentials:
    """Opens connections' credentials for jobs, and refreshes them."""

    def __init__(self, store: CredentialStore, vault: Vault, refresher: Refresher, clock: Clock) -> None:
        self._store = store
        self._vault = vault
        self._refresher = refresher
        self._clock = clock
        self._refreshes = Unbroken()

    def of(
        self, account: str, id_: str, profile: OAuthProfile | None, client: Client | None
    ) -> ConnectionCredential:
        """A connection's credential; `client` is the operator's, for connections without their own."""
        return ConnectionCredential(self, account, id_, profile, client)

    async def usable(
        self, account: str, id_: str, profile: OAuthProfile | None, client: Client | None, refused: str
    ) -> str:
        """The token of a connection, fresher than the one that was refused. Raises CredentialRefused."""
        end_s = self._clock.monotonic_s() + _WAIT_S_MAX
        first: int | None = None
        while True:
            row = await self._row(account, id_)
            first = row.version if first is None else first
            secrets = await self._vault.secrets(row)
            if secrets.tokens is None or profile is None:
                return _secret(secrets, refused)
            # However short its life, what came since this began is as fresh as it gets.
            fresh = row.version > first or not self._is_old(secrets.tokens)
            if secrets.tokens.access != refused and fresh:
                return secrets.tokens.access
            client = secrets.client or client
            if not secrets.tokens.refresh or client is None:
                if secrets.tokens.access == refused:
                    raise CredentialRefused("the source no longer accepts the grant; connect again")
                return secrets.tokens.access
            # A refresh that was begun must be finished, whoever stops waiting for it.
            await self._refresh_unbroken(row, secrets, profile, client)
            if self._clock.monotonic_s() >= end_s:
                raise Unavailable("the credential is being refreshed; try again", retry_after_s=5.0)

    async def drain(self, timeout_s: float) -> None:
        """Waits for refreshes that are on their way."""
        await self._refreshes.drain(timeout_s)

    async def _row(self, account: str, id_: str) -> ConnectionRow:
        row = await asyncio.to_thread(self._store.get, account, id_)
        if row is None or row.state is ConnectionState.DISCONNECTING:
            raise CredentialRefused("the source was disconnected", reason="DISCONNECTED")
        if row.state is ConnectionState.REFUSED:
            raise CredentialRefused("the source no longer accepts the grant; connect again")
        return row

    def _is_old(self, tokens: Tokens) -> bool:
        early_s = min(_EARLY_S, tokens.life_s / 10)
        return bool(tokens.expire_s) and tokens.expire_s - early_s <= self._clock.now_s()

    async def _refresh_unbroken(
        self, row: ConnectionRow, secrets: Secrets, profile: OAuthProfile, client: Client
    ) -> None:
        # Each under its own caller's permit: one that ends with its job is not another job's refusal.
        await self._refreshes.run(object(), lambda: self._refresh(row, secrets, profile, client))

    async def _refresh(
        self, row: ConnectionRow, secrets: Secrets, profile: OAuthProfile, client: Client
    ) -> None:
        """Refreshes, or waits a moment for whoever does."""
        sealed = await self._vault.sealer(row.account, row.id, "credential", row.version + 1)
        now_ms = int(self._clock.now_s() * 1000)
        until_ms = now_ms + int(_LEASE_S * 1000)
        fence = await asyncio.to_thread(self._store.lease_refresh, row, now_ms, until_ms)
        if fence is None:
            await asyncio.sleep(_LOOK_EVERY_S)
            return
        if secrets.tokens is None:
            raise CredentialRefused("there is nothing to refresh")
        try:
            tokens = await self._refresher.refresh(profile, client, secrets.tokens.refresh)
        except (CredentialRefused, ProviderRefused) as error:
            dead = isinstance(error, CredentialRefused)
            end = self._store.mark_refused if dead else self._store.release_refresh
            await asyncio.to_thread(end, row, fence)
            raise
        except SealcombError:
            await asyncio.to_thread(self._store.release_refresh, row, fence)
            raise
        raw = to_bytes(Secrets(tokens, secrets.client, secrets.secret))
        stored = await asyncio.to_thread(self._store.store_credential, row, fence, sealed(raw))
        if not stored and await self._has_ended(row):
            # Whoever disconnected could tell the provider of the older tokens alone.
            await self._refresher.revoke(profile, client, tokens)
        # Otherwise the lease was lost; whoever asks looks again.

    async def _has_ended(self, row: ConnectionRow) -> bool:
        found = await asyncio.to_thread(self._store.get, row.account, row.id)
        return found is None or found.state is ConnectionState.DISCONNECTING


class ConnectionCredential:
    """What a source asks, for one connection."""

    def __init__(
        self,
        credentials: Credentials,
        account: str,
        id_: str,
        profile: OAuthProfile | None,
        client: Client | None,
    ) -> None:
        self._credentials = credentials
        self._place = (account, id_, profile, client)
        self._last = ""

    async def token(self, *, refused: bool = False) -> str:
        """The token; see the contract of sources."""
        try:
            self._last = await self._credentials.usable(*self._place, self._last if refused else "")
        except NotFound:
            # Its key was destroyed a moment ago.
            raise CredentialRefused("the source was disconnected", reason="DISCONNECTED") from None
        return self._last


class TokenHolders:
    """The temporary tokens of this process, by ingestion."""

    def __init__(self) -> None:
        self._held: dict[str, TemporaryToken] = {}
        self._sweeps = 0

    def put(self, ingestion_id: str, token: TemporaryToken) -> None:
        """Holds a token; an earlier one is wiped."""
        self.drop(ingestion_id)
        self._held[ingestion_id] = token

    def get(self, ingestion_id: str) -> TemporaryToken | None:
        """The token of an ingestion, if this process has it."""
        return self._held.get(ingestion_id)

    def held(self) -> list[str]:
        """The ingestions that have one."""
        return list(self._held)

    def drop(self, ingestion_id: str) -> None:
        """Wipes a token."""
        token = self._held.pop(ingestion_id, None)
        if token is not None:
            self.wipe(token)

    def wipe(self, token: TemporaryToken) -> None:
        """Wipes a token that may not be held; what it left behind is due to be overwritten."""
        token.wipe()
        # Once soon, and once when whoever used it last has surely gone.
        self._sweeps = 2

    def sweep_is_due(self) -> bool:
        """Whether free memory is to be overwritten now, since a token was wiped."""
        due = self._sweeps > 0
        self._sweeps = max(self._sweeps - 1, 0)
        return due

    def drop_all(self) -> None:
        """Wipes every token."""
        for ingestion_id in self.held():
            self.drop(ingestion_id)


def _secret(secrets: Secrets, refused: str) -> str:
    if not secrets.secret or secrets.secret == refused:
        raise CredentialRefused("the source does not accept the secret; connect again")
    return secrets.secret
