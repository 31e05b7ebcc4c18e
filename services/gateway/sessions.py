"""Tokens in use: what the authorizer knows of each, held for seconds, dropped at once on command.

A session is what a token's and its account's rows said when it was loaded. This process drops it in
the same moment in which it revokes, suspends, deletes or changes limits; what other processes
change comes by the change feed, without which no session is believed. A session is found by the
token's keyed digest, so no token text is kept.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.clock import Clock
from services.common.context import acting_as
from services.common.errors import PermissionDenied, SealcombError, Unauthenticated, Unavailable
from services.gateway.buckets import Bucket, Buckets, Limits
from services.gateway.contexts import ContextMint, Identity
from services.gateway.profiles import Profiles
from services.gateway.records import ACTIVE, OPERATOR, AccountRow, TokenRow
from services.gateway.store import GatewayStore
from services.gateway.tokens import same_digest
from services.gateway.usage.amounts import Used
from services.gateway.usage.meter import Meter, Meters

HELD_S = 30.0
_ENTRIES_MAX = 50_000
_LOADS_MAX = 20
# Different tokens being loaded at once.
_LOADING_MAX = 1000
# Loading a session reads the token's own profile, under a context that says so.
_LOAD_METHOD = "/sealcomb.v1.TokenService/WhoAmI"


@dataclass(slots=True)
class Grant:
    """What an allowed call of one method carries inside, and until when it may be used again."""

    account: str
    context: str
    until_s: float
    # The answer as bytes, kept by whoever renders it.
    rendered: bytes = b""


@dataclass(slots=True)
class Session:
    """A token in use."""

    identity: Identity
    account_bucket: Bucket
    # None where a token may use all of its account's limits, so that the account's bucket is enough.
    token_bucket: Bucket | None
    limits: Limits
    # None for an operator's.
    meter: Meter | None
    until_s: float
    grants: dict[str, Grant] = field(default_factory=dict)
    used_minute: int = 0


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for an account without limits of its own, and the part of them for one token."""

    limits: Limits
    calls_in_flight: int = 256
    token_share: float = 1.0


class Sessions:
    """The sessions of this process, and how one is loaded."""

    def __init__(
        self,
        store: GatewayStore,
        profiles: Profiles,
        mint: ContextMint,
        clock: Clock,
        defaults: Defaults,
        account_buckets: Buckets,
        token_buckets: Buckets,
        meters: Meters,
    ) -> None:
        self._store = store
        self._profiles = profiles
        self._mint = mint
        self._clock = clock
        self._defaults = defaults
        self._account_buckets = account_buckets
        self._token_buckets = token_buckets
        self._meters = meters
        self._held: OrderedDict[bytes, Session] = OrderedDict()
        self._loading: dict[bytes, asyncio.Task[Session]] = {}
        # Counts drops, so that what was read before one is not kept after it.
        self._drops = 0
        self._believed_until_s = -math.inf

    def held(self, digest: bytes) -> Session | None:
        """The session of a token digest, if it was loaded a short while ago and is still believed."""
        session = self._held.get(digest)
        if session is None:
            return None
        now_s = self._clock.monotonic_s()
        if now_s >= session.until_s or now_s >= self._believed_until_s:
            return None
        return session

    def believe_until(self, monotonic_s: float) -> None:
        """Nothing is held longer than until then, unless this is said again."""
        self._believed_until_s = monotonic_s

    def load(self, token_id: str, digest: bytes) -> Session | None:
        """Loads a session; None if that takes `load_slowly`.

        Raises Unauthenticated for a token that was not issued, has ended or belongs to nobody, and
        PermissionDenied for a suspended account's.
        """
        if not self._store.is_local:
            return None
        rows = self._read(token_id, digest)
        return None if rows.token.restricted else self._keep(digest, rows, ())

    def is_loading(self, digest: bytes) -> bool:
        """Whether somebody loads it already, so that `load_slowly` makes no look-up of its own."""
        return digest in self._loading

    async def load_slowly(self, token_id: str, digest: bytes) -> Session:
        """Loads a session whose rows are elsewhere, or whose collections must be opened first.

        Raises as `load` does, and KeyDisabled, since without names there is nothing it may reach. Calls of
        one token that come at once share one loading.
        """
        task = self._loading.get(digest)
        if task is None:
            if len(self._loading) >= _LOADING_MAX:
                raise _not_looked_up()
            task = asyncio.get_running_loop().create_task(self._load(token_id, digest))
            self._loading[digest] = task
            task.add_done_callback(lambda done: self._loaded(digest, done))
        # Who stops waiting does not end it for the others.
        return await asyncio.shield(task)

    def _loaded(self, digest: bytes, task: asyncio.Task[Session]) -> None:
        del self._loading[digest]
        if not task.cancelled():
            # Looked at, since whoever waited may have left.
            task.exception()

    async def _load(self, token_id: str, digest: bytes) -> Session:
        for _ in range(_LOADS_MAX):
            drops = self._drops
            if self._store.is_local:
                rows = self._read(token_id, digest)
            else:
                rows = await self._read_elsewhere(token_id, digest)
            collections: tuple[str, ...] = ()
            if rows.token.restricted:
                collections = await self._collections_of(rows.token)
            if drops == self._drops:
                return self._keep(digest, rows, collections)
        raise Unavailable("the token's account is changing; try again", retry_after_s=1.0)

    async def _read_elsewhere(self, token_id: str, digest: bytes) -> _Rows:
        try:
            return await asyncio.to_thread(self._read, token_id, digest)
        except SealcombError:
            raise
        except Exception as error:
            # The change feed says in the log that the database is away; each call would say it too.
            raise _not_looked_up() from error

    async def _collections_of(self, token: TokenRow) -> tuple[str, ...]:
        if token.sealed is None:
            raise _invalid()
        with acting_as(self._mint.for_keyvault(token.account, _LOAD_METHOD, token.id)):
            profile = await self._profiles.open_token(token.id, token.sealed)
        if not profile.collections:
            # An empty list would mean all of them.
            raise _invalid()
        return profile.collections

    def drop_token(self, token_id: str) -> None:
        """Forgets a token, as its row has changed."""
        self._drop(lambda session: session.identity.token_id == token_id)

    def drop_account(self, account: str) -> None:
        """Forgets every token of an account, as its row or its key has changed."""
        self._drop(lambda session: session.identity.account == account)

    def drop_all(self) -> None:
        """Forgets every token."""
        self._drop(lambda _session: True)

    def limits_of(self, account: AccountRow) -> Limits:
        """The limits in force for an account."""
        default = self._defaults.limits
        return Limits(
            default.calls_per_second if account.calls_per_second is None else account.calls_per_second,
            default.burst if account.burst is None else account.burst,
        )

    def calls_in_flight_of(self, account: AccountRow) -> int:
        """How many calls of an account a service may have under way."""
        own = account.calls_in_flight
        return self._defaults.calls_in_flight if own is None else own

    def _drop(self, matches: Callable[[Session], bool]) -> None:
        self._drops += 1
        for digest in [digest for digest, session in self._held.items() if matches(session)]:
            del self._held[digest]

    def _read(self, token_id: str, digest: bytes) -> _Rows:
        token = self._store.token(token_id)
        # Compared also where there is no such token, so that both cost the same.
        same = same_digest(digest, token.digest if token else bytes(len(digest)))
        if token is None or not same:
            raise _invalid()
        now_ms = self._clock.now_s() * 1000
        if token.revoke_time_ms is not None:
            raise Unauthenticated("the token was revoked; use another", reason="TOKEN_REVOKED")
        if token.expire_time_ms is not None and now_ms >= token.expire_time_ms:
            raise Unauthenticated("the token has expired; use another", reason="TOKEN_EXPIRED")
        if token.account == OPERATOR:
            return _Rows(token, None, None)
        account = self._store.account(token.account)
        if account is None or account.state != ACTIVE:
            raise _invalid()
        if account.suspended:
            raise PermissionDenied("the account is suspended; ask the operator", reason="ACCOUNT_SUSPENDED")
        return _Rows(token, account, self._meters.used(account.id, account.quotas))

    def _keep(self, digest: bytes, rows: _Rows, collections: tuple[str, ...]) -> Session:
        token, account = rows.token, rows.account
        limits, in_flight, meter = self._defaults.limits, 0, None
        if account is not None:
            limits, in_flight = self.limits_of(account), self.calls_in_flight_of(account)
            meter = self._meters.of(account.id, account.quotas, rows.used)
        expires_s = math.inf if token.expire_time_ms is None else token.expire_time_ms / 1000
        session = Session(
            Identity(token.account, token.id, token.scopes, collections, expires_s, in_flight),
            self._account_buckets.bucket(token.account, limits),
            self._token_bucket(token.id, limits),
            limits,
            meter,
            self._clock.monotonic_s() + HELD_S,
        )
        self._held[digest] = session
        while len(self._held) > _ENTRIES_MAX:
            self._held.popitem(last=False)
        return session

    def _token_bucket(self, token_id: str, limits: Limits) -> Bucket | None:
        share = self._defaults.token_share
        if share == 1:
            return None
        own = Limits(limits.calls_per_second * share, max(1, int(limits.burst * share)))
        return self._token_buckets.bucket(token_id, own)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the store says of a token: its account is None for an operator's."""

    token: TokenRow
    account: AccountRow | None
    used: Used | None


def _not_looked_up() -> Unavailable:
    return Unavailable("the token could not be looked up; try again", retry_after_s=1.0)


def _invalid() -> Unauthenticated:
    return Unauthenticated("the token is not valid; check it or ask for a new one")
