"""Tokens of one account: created, listed, rotated, revoked. Only tokens with the admin scope come here.

A token's text leaves this module once, in the answer to the call that made it. Revoking and
rotating take effect here before anything else is asked; issuing is recorded before it happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.common import ids, paging
from services.common.clock import Clock
from services.common.context import current_account
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    QuotaViolation,
    ResourceExhausted,
    SealcombError,
    invalid,
)
from services.common.methods import ACCOUNT_SCOPES
from services.common.sealing import DataKey
from services.gateway.accounts import Keyvault
from services.gateway.fields import check_idempotency_key, check_name
from services.gateway.positions import decode_position, encode_position
from services.gateway.profiles import KEY_IS_OFF, Profiles, TokenProfile
from services.gateway.records import Taken, TokenRow
from services.gateway.sessions import Sessions
from services.gateway.store import GatewayStore
from services.gateway.tokens import Kind, Pepper, RandomBytes, Token, make_token

_COLLECTIONS_MAX = 100
_TOKENS_MAX = 1000
_KEPT_ENDED_MS = 90 * 86_400_000
_TTL_S_MAX = 10 * 365 * 86_400
_OVERLAP_S_MAX = 30 * 86_400
# A token for some collections must not manage tokens, keys or the audit log of all of them.
_RESTRICTED_SCOPES = frozenset({"read", "write", "sources"})
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as its account sees it; label and collections are empty while the account's key is disabled."""

    row: TokenRow
    profile: TokenProfile


class TokenIssuer:
    """The acts of an account's administrators upon its tokens."""

    def __init__(
        self,
        store: GatewayStore,
        keyvault: Keyvault,
        profiles: Profiles,
        sessions: Sessions,
        pepper: Pepper,
        page_key: DataKey,
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._store = store
        self._keyvault = keyvault
        self._profiles = profiles
        self._sessions = sessions
        self._pepper = pepper
        self._page_key = page_key
        self._clock = clock
        self._random_bytes = random_bytes

    async def create(
        self,
        label: str,
        scopes: Sequence[str],
        collections: Sequence[str],
        ttl_s: float | None,
        idempotency_key: str,
    ) -> tuple[Token | None, TokenInfo]:
        """A new token; the earlier one's info, without its text, for a repeated key."""
        _check_request(label, scopes, collections, ttl_s)
        check_idempotency_key(idempotency_key)
        account = current_account()
        wanted = tuple(scope for scope in ACCOUNT_SCOPES if scope in scopes)
        tag, request_tag = self._tags(account, label, wanted, collections, ttl_s, idempotency_key)
        if tag is not None and (earlier := await self._made_before(tag, request_tag)) is not None:
            return None, earlier
        await self._check_room(account)
        token = make_token(Kind.ACCOUNT, self._random_bytes)
        profile = TokenProfile(label, tuple(collections))
        row = TokenRow(
            token.id,
            account,
            self._pepper.digest(token.text.encode()),
            wanted,
            restricted=bool(collections),
            sealed=await self._profiles.seal_token(token.id, label, collections),
            create_time_ms=self._now_ms(),
            expire_time_ms=None if ttl_s is None else self._now_ms() + int(ttl_s * 1000),
            idempotency_tag=tag,
            request_tag=request_tag,
        )
        await self._keyvault.record_event("token.create", token.id)
        try:
            await self._in_thread(lambda: self._store.add_token(row))
        except Taken:
            raise Aborted("another call used this idempotency key; try again", retry_after_s=0.1) from None
        return token, TokenInfo(row, profile)

    async def list(self, page_size: int, page_token: str) -> tuple[list[TokenInfo], str]:
        """A page of the account's tokens in order of creation, and the token of the next page."""
        account = current_account()
        after = decode_position(self._page_key, account, "tokens", page_token)
        size = paging.page_size(page_size)
        rows = await self._in_thread(lambda: self._store.list_tokens(account, after, size + 1))
        page = rows[:size]
        infos = [TokenInfo(row, await self._profile_of(row)) for row in page]
        last = (page[-1].create_time_ms, page[-1].id) if len(rows) > size else None
        return infos, encode_position(self._page_key, account, "tokens", last)

    async def rotate(self, token_id: str, overlap_s: float) -> tuple[Token, TokenInfo]:
        """A successor with the same label, scopes, collections and lifetime; the old one ends by the overlap.

        Raises NotFound, or FailedPrecondition for a token that has ended.
        """
        if not 0 <= overlap_s <= _OVERLAP_S_MAX:
            raise invalid("overlap", "must be 0 to 30 days")
        old = await self._own(token_id)
        now_ms = self._now_ms()
        if old.revoke_time_ms is not None or (
            old.expire_time_ms is not None and old.expire_time_ms <= now_ms
        ):
            raise FailedPrecondition("the token has ended; create a new one", reason="TOKEN_ENDED")
        await self._check_room(old.account)
        profile = await self._open(old)
        token = make_token(Kind.ACCOUNT, self._random_bytes)
        lifetime_ms = None if old.expire_time_ms is None else old.expire_time_ms - old.create_time_ms
        row = TokenRow(
            token.id,
            old.account,
            self._pepper.digest(token.text.encode()),
            old.scopes,
            old.restricted,
            sealed=await self._profiles.seal_token(token.id, profile.label, profile.collections),
            create_time_ms=now_ms,
            expire_time_ms=None if lifetime_ms is None else now_ms + lifetime_ms,
        )
        ends_ms = now_ms + int(overlap_s * 1000)
        if old.expire_time_ms is not None:
            ends_ms = min(ends_ms, old.expire_time_ms)
        await self._keyvault.record_event("token.rotate", token_id)
        await self._in_thread(lambda: self._store.add_token(row, ends=(token_id, ends_ms)))
        self._sessions.drop_token(token_id)
        return token, TokenInfo(row, profile)

    async def revoke(self, token_id: str) -> None:
        """Ends a token before it returns; again for one that has ended changes nothing. Raises NotFound."""
        await self._own(token_id)
        await self._in_thread(lambda: self._store.revoke_token(token_id, self._now_ms()))
        self._sessions.drop_token(token_id)
        await self._keyvault.record_event("token.revoke", token_id)

    async def expire_time_ms(self, token_id: str) -> int | None:
        """When a token ends by itself."""
        row = await self._in_thread(lambda: self._store.token(token_id))
        return None if row is None else row.expire_time_ms

    async def _made_before(self, tag: bytes, request_tag: bytes | None) -> TokenInfo | None:
        row = await self._in_thread(lambda: self._store.token_by_idempotency(tag))
        if row is None:
            return None
        if row.request_tag != request_tag:
            raise AlreadyExists(
                "the idempotency key was used with other values; use a new key",
                reason="IDEMPOTENCY_KEY_REUSED",
            )
        return TokenInfo(row, await self._profile_of(row))

    def _tags(
        self,
        account: str,
        label: str,
        scopes: tuple[str, ...],
        collections: Sequence[str],
        ttl_s: float | None,
        idempotency_key: str,
    ) -> tuple[bytes | None, bytes | None]:
        if not idempotency_key:
            return None, None
        request = (label, " ".join(scopes), repr(ttl_s), *collections)
        tag = self._pepper.tag("token", account, idempotency_key)
        return tag, self._pepper.tag("token-request", account, *request)

    async def _check_room(self, account: str) -> None:
        if await self._in_thread(lambda: self._store.count_tokens(account)) < _TOKENS_MAX:
            return
        before_ms = self._now_ms() - _KEPT_ENDED_MS
        await self._in_thread(lambda: self._store.forget_ended_tokens(account, before_ms))
        if await self._in_thread(lambda: self._store.count_tokens(account)) >= _TOKENS_MAX:
            raise ResourceExhausted(
                f"the account has {_TOKENS_MAX} tokens; ended ones make room after 90 days",
                reason="TOO_MANY_TOKENS",
                quotas=[QuotaViolation("tokens", f"{_TOKENS_MAX} tokens for each account")],
            )

    async def _profile_of(self, row: TokenRow) -> TokenProfile:
        try:
            return await self._open(row)
        except SealcombError as error:
            if error.reason in KEY_IS_OFF:
                return TokenProfile("", ())
            raise

    async def _open(self, row: TokenRow) -> TokenProfile:
        return (
            TokenProfile("", ())
            if row.sealed is None
            else await self._profiles.open_token(row.id, row.sealed)
        )

    async def _own(self, token_id: str) -> TokenRow:
        row = await self._in_thread(lambda: self._store.token(token_id)) if ids.is_id(token_id) else None
        if row is None or row.account != current_account():
            raise NotFound("no such token", reason="TOKEN_NOT_FOUND")
        return row

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.to_thread(work)


def _check_request(
    label: str, scopes: Sequence[str], collections: Sequence[str], ttl_s: float | None
) -> None:
    check_name("label", label, empty=True)
    if not scopes:
        raise invalid("scopes", "must name at least one scope")
    for index, scope in enumerate(scopes[: len(ACCOUNT_SCOPES) + 1]):
        if scope not in ACCOUNT_SCOPES:
            raise invalid(f"scopes[{index}]", "must be one of " + ", ".join(ACCOUNT_SCOPES))
    if len(scopes) > len(ACCOUNT_SCOPES):
        raise invalid("scopes", "must name each scope once")
    if len(collections) > _COLLECTIONS_MAX:
        raise invalid("collections", f"must have at most {_COLLECTIONS_MAX} names")
    for index, name in enumerate(collections):
        check_name(f"collections[{index}]", name)
    if collections and not _RESTRICTED_SCOPES.issuperset(scopes):
        raise invalid("scopes", "must be read, write or sources only for a token limited to collections")
    if ttl_s is not None and not 0 < ttl_s <= _TTL_S_MAX:
        raise invalid("ttl", "must be above 0 and at most 10 years")
