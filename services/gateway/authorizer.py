"""Decides about every call at the edge: which token, which account, which scope, how many calls are left.

Deny by default. A token that is not valid costs its client's address, never an account. Nothing
here logs or repeats what a caller sent.
"""

from __future__ import annotations

import asyncio

from services.common.clock import Clock
from services.common.errors import (
    PermissionDenied,
    QuotaViolation,
    ResourceExhausted,
    SealcombError,
    Unauthenticated,
    Unavailable,
)
from services.common.methods import EDGE_METHODS, PublicMethod, Scope
from services.gateway.buckets import ASK, AddressBuckets
from services.gateway.contexts import REUSE_S, ContextMint
from services.gateway.failures import Failures
from services.gateway.sessions import Grant, Session, Sessions
from services.gateway.tokens import Pepper, has_token_form, id_in
from services.gateway.usage.amounts import day_of
from services.gateway.usage.meter import Meters

_SCHEME = b"bearer "
# How often a call looks again before it is told to come back.
_TURNS_MAX = 20


class Authorizer:
    """Admits or refuses calls; `admit` decides at once wherever it can."""

    def __init__(
        self,
        sessions: Sessions,
        pepper: Pepper,
        mint: ContextMint,
        addresses: AddressBuckets,
        failures: Failures,
        meters: Meters,
        usage: UsageLog,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._pepper = pepper
        self._mint = mint
        self._addresses = addresses
        self._failures = failures
        self._meters = meters
        self._usage = usage
        self._clock = clock
        self._look_ups: set[asyncio.Task[Session]] = set()

    def admit(self, path: str, authorization: bytes | None, address: str) -> Grant | None:
        """The grant of a call, or None if deciding takes `admit_slowly`. Raises SealcombError to refuse."""
        method = _method(path)
        wait_s = self._addresses.try_take(address, method.cost)
        if wait_s:
            raise ResourceExhausted(
                "too many calls from this address; wait as long as the retry info says",
                reason="ADDRESS_LIMITED",
                quotas=[QuotaViolation("address", "calls per second")],
                retry_after_s=wait_s,
            )
        token = self._token(authorization, address)
        digest = self._pepper.digest(token)
        session = self._sessions.held(digest)
        if session is None:
            self._failures.check(address)
            try:
                session = self._sessions.load(id_in(token), digest)
            except (Unauthenticated, PermissionDenied):
                self._failures.add(address)
                raise
            if session is None:
                return None
        return self._grant(session, method)

    async def admit_slowly(self, path: str, authorization: bytes | None, address: str) -> Grant:
        """The grant of a call that `admit` could not decide. Raises SealcombError to refuse."""
        method = _method(path)
        token = self._token(authorization, address)
        digest = self._pepper.digest(token)
        for _ in range(_TURNS_MAX):
            session = self._sessions.held(digest)
            if session is None:
                session = await self._load(token, digest, address)
            grant = self._grant(session, method)
            if grant is not None:
                return grant
            # Looked up again afterwards: the token may be revoked meanwhile.
            await _ask(session, method.cost, self._clock.monotonic_s())
        raise Unavailable("the account's limits are changing; try again", retry_after_s=1.0)

    async def _load(self, token: bytes, digest: bytes, address: str) -> Session:
        if self._sessions.is_loading(digest):
            # No look-up of its own.
            try:
                return await self._sessions.load_slowly(id_in(token), digest)
            except (Unauthenticated, PermissionDenied):
                self._failures.add(address)
                raise
        await self._failures.enter(address)
        look_up = asyncio.get_running_loop().create_task(self._look_up(token, digest, address))
        self._look_ups.add(look_up)
        look_up.add_done_callback(self._looked_up)
        # Who stops waiting has not ended the look-up.
        return await asyncio.shield(look_up)

    async def _look_up(self, token: bytes, digest: bytes, address: str) -> Session:
        try:
            # Another look-up may have ended while this one waited for its turn.
            return self._sessions.held(digest) or await self._sessions.load_slowly(id_in(token), digest)
        except (Unauthenticated, PermissionDenied):
            self._failures.add(address)
            raise
        finally:
            self._failures.leave(address)

    def _looked_up(self, look_up: asyncio.Task[Session]) -> None:
        self._look_ups.discard(look_up)
        if not look_up.cancelled():
            # Looked at, since whoever waited may have left.
            look_up.exception()

    def _token(self, authorization: bytes | None, address: str) -> bytes:
        if authorization is None:
            raise self._failed(
                address, "the call carries no token; send `authorization: Bearer <token>`", "TOKEN_MISSING"
            )
        if authorization[:7].lower() != _SCHEME or not has_token_form(token := authorization[7:]):
            raise self._failed(
                address, "the token is malformed; check that it was copied whole", "TOKEN_MALFORMED"
            )
        return token

    def _failed(self, address: str, message: str, reason: str) -> SealcombError:
        self._failures.check(address)
        self._failures.add(address)
        return Unauthenticated(message, reason=reason)

    def _grant(self, session: Session, method: PublicMethod) -> Grant | None:
        now_s = self._clock.now_s()
        identity = session.identity
        if now_s >= identity.expires_s:
            raise Unauthenticated("the token has expired; use another", reason="TOKEN_EXPIRED")
        monotonic_s = self._clock.monotonic_s()
        meter = session.meter
        minute = int(now_s // 60)
        if minute != session.used_minute:
            session.used_minute = minute
            self._usage.note(identity.token_id, minute * 60_000)
            if meter is not None and day_of(now_s) > meter.day:
                self._meters.turn(meter, day_of(now_s))
        try:
            if meter is not None:
                meter.admit(method, now_s)
            if not _take(session, method.cost, monotonic_s):
                return None
            grant = session.grants.get(method.path)
            if grant is None or monotonic_s >= grant.until_s:
                _check_scope(session, method)
                until_s = monotonic_s + min(REUSE_S, identity.expires_s - now_s)
                grant = Grant(identity.account, self._mint.for_call(identity, method), until_s)
                session.grants[method.path] = grant
        except SealcombError:
            if meter is not None:
                meter.pending.refusals += 1
            raise
        if meter is not None:
            meter.pending.calls += 1
        return grant


class UsageLog:
    """When tokens were last used, to the minute, until somebody writes it down."""

    def __init__(self) -> None:
        self._times_ms: dict[str, int] = {}

    def note(self, token_id: str, time_ms: int) -> None:
        """A token was used in the minute that began at this time."""
        self._times_ms[token_id] = time_ms

    def take(self) -> list[tuple[str, int]]:
        """What was noted since the last time."""
        times, self._times_ms = self._times_ms, {}
        return list(times.items())


def _method(path: str) -> PublicMethod:
    method = EDGE_METHODS.get(path)
    if method is None:
        # Envoy routes listed methods only; this is the second lock on the same door.
        raise PermissionDenied("no such method")
    return method


def _check_scope(session: Session, method: PublicMethod) -> None:
    needed = method.scope
    if needed is Scope.ANY:
        return
    identity = session.identity
    if needed is Scope.OPERATOR_OR_ADMIN:
        needed = Scope.ADMIN if identity.account else Scope.OPERATOR
    is_operator = not identity.account
    if needed.value not in identity.scopes or is_operator != (needed is Scope.OPERATOR):
        raise PermissionDenied(
            f"the token lacks the scope {needed.value}; use one that has it", reason="SCOPE_MISSING"
        )


def _take(session: Session, cost: float, now_s: float) -> bool:
    # Both or neither: a call that one bucket refuses must not drain the other.
    account, token = session.account_bucket, session.token_bucket
    account_wait_s = account.wait_s(cost, now_s)
    token_wait_s = 0.0 if token is None else token.wait_s(cost, now_s)
    if not account_wait_s and not token_wait_s:
        account.take(cost)
        if token is not None:
            token.take(cost)
        return True
    if account_wait_s <= 0 and token_wait_s <= 0:
        return False
    subject = "account" if account_wait_s >= token_wait_s else "token"
    raise ResourceExhausted(
        "too many calls; wait as long as the retry info says",
        reason="RATE_LIMITED",
        quotas=[
            QuotaViolation(
                subject,
                f"{session.limits.calls_per_second:g} calls per second, bursts of {session.limits.burst}",
            )
        ],
        retry_after_s=max(account_wait_s, token_wait_s),
    )


async def _ask(session: Session, cost: float, now_s: float) -> None:
    for bucket in (session.account_bucket, session.token_bucket):
        if bucket is not None and bucket.wait_s(cost, now_s) == ASK:
            await bucket.ask(cost)
