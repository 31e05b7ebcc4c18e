"""Accounts: made, listed, changed, suspended, deleted. Every act is an operator's.

An account becomes visible with its key, its sealed name and its first token, all at once; one
whose making was interrupted is never seen and is removed later. Deletion destroys the keys first,
so that whatever remains after a crash is unreadable already. Protective acts (suspend, delete)
take effect here before keyvault is asked; their opposites after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog

from services.common import ids, paging
from services.common.clock import Clock
from services.common.context import ContextRefused, acting_as, current_caller
from services.common.errors import Aborted, AlreadyExists, NotFound, SealcombError, invalid
from services.common.methods import ACCOUNT_SCOPES
from services.common.sealing import DataKey
from services.gateway.buckets import Limits
from services.gateway.contexts import ContextMint
from services.gateway.fields import check_idempotency_key, check_name
from services.gateway.limits import LimitChange, changed_columns, check_limits, quotas_after, request_parts
from services.gateway.positions import decode_position, encode_position
from services.gateway.profiles import KEY_IS_OFF, Profiles
from services.gateway.records import ACTIVE, CREATING, DELETING, AccountRow, Taken, TokenRow
from services.gateway.sessions import Sessions
from services.gateway.store import GatewayStore
from services.gateway.tokens import Kind, Pepper, RandomBytes, Token, make_token

_log = structlog.get_logger("accounts")
# Longer than CreateAccount may take, so a row of this age belongs to no call in progress.
_INTERRUPTED_AFTER_MS = 45_000
_SWEEP_BATCH = 100
_OPENED_AT_ONCE = 16
_DELETE_METHOD = "/sealcomb.v1.AccountService/DeleteAccount"
_Result = TypeVar("_Result")


class Keyvault(Protocol):
    """What accounts and tokens ask of keyvault, always for the current caller's account."""

    async def provision_account(self) -> None:
        """Makes the account's KMS key if there is none."""

    async def set_account_suspended(self, suspended: bool) -> None:
        """Suspends or resumes key release for the account, and records it."""

    async def destroy_account(self) -> str:
        """Destroys the account's keys for good, records it, and gives the receipt of it.

        NotFound for an account it never knew.
        """

    async def record_event(self, action: str, resource: str) -> None:
        """Adds an administrative act to the account's audit chain."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account as its operator sees it; the name is empty while its key is disabled."""

    id: str
    name: str
    limits: Limits
    suspended: bool
    create_time_ms: int
    calls_in_flight: int
    quotas: Mapping[str, int]


class Accounts:
    """The operator's acts upon accounts."""

    def __init__(
        self,
        store: GatewayStore,
        keyvault: Keyvault,
        profiles: Profiles,
        sessions: Sessions,
        mint: ContextMint,
        pepper: Pepper,
        page_key: DataKey,
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._store = store
        self._keyvault = keyvault
        self._profiles = profiles
        self._sessions = sessions
        self._mint = mint
        self._pepper = pepper
        self._page_key = page_key
        self._clock = clock
        self._random_bytes = random_bytes

    async def create(
        self, name: str, limits: LimitChange, idempotency_key: str
    ) -> tuple[Account, Token | None]:
        """A new account and its first token; the earlier account, without a token, for a repeated key."""
        check_name("name", name)
        check_limits(limits)
        check_idempotency_key(idempotency_key)
        tag, request_tag = self._tags(name, limits, idempotency_key)
        row = AccountRow(
            ids.from_bytes(self._random_bytes(16)),
            self._now_ms(),
            CREATING,
            suspended=False,
            calls_per_second=limits.calls_per_second,
            burst=limits.burst,
            calls_in_flight=limits.calls_in_flight,
            quotas=quotas_after({}, limits),
            idempotency_tag=tag,
            request_tag=request_tag,
        )
        try:
            await self._in_thread(lambda: self._store.add_account(row))
        except Taken:
            return await self._made_before(tag, request_tag), None
        try:
            token, token_row = self._first_token(row.id)
            with self._acting_for(row.id):
                await self._keyvault.provision_account()
                sealed_name = await self._profiles.seal_name(name)
                sealed_token = await self._profiles.seal_token(token.id, "first token", ())
                await self._keyvault.record_event("account.create", row.id)
            token_row = replace(token_row, sealed=sealed_token)
            await self._in_thread(lambda: self._store.activate_account(row.id, sealed_name, token_row))
        except BaseException:
            # Also where the caller went away. What this cannot remove, `finish_interrupted` will.
            await asyncio.shield(self._try_to_remove(row))
            raise
        return self._view(row, name), token

    async def get(self, account_id: str) -> Account:
        """One account. Raises NotFound."""
        row = await self._active(account_id)
        return self._view(row, await self._name_of(row))

    async def list(self, page_size: int, page_token: str) -> tuple[list[Account], str]:
        """A page of accounts in order of creation, and the token of the next page."""
        after = decode_position(self._page_key, "", "accounts", page_token)
        size = paging.page_size(page_size)
        rows = await self._in_thread(lambda: self._store.list_accounts(after, size + 1))
        page = rows[:size]
        gate = asyncio.Semaphore(_OPENED_AT_ONCE)

        async def view(row: AccountRow) -> Account:
            async with gate:
                return self._view(row, await self._name_of(row))

        accounts = list(await asyncio.gather(*(view(row) for row in page)))
        more = len(rows) > size
        last = (page[-1].create_time_ms, page[-1].id) if more else None
        return accounts, encode_position(self._page_key, "", "accounts", last)

    async def update(self, account_id: str, limits: LimitChange, suspended: bool | None) -> Account:
        """Changes limits, suspends or resumes, effective before it returns. Raises NotFound."""
        check_limits(limits)
        row = await self._active(account_id)
        with self._acting_for(row.id):
            if limits != LimitChange():
                await self._keyvault.record_event("account.limits", row.id)
                await self._change(row.id, changed_columns(row, limits))
            if suspended:
                await self._change(row.id, {"suspended": True})
                await self._keyvault.set_account_suspended(True)
            elif suspended is not None:
                await self._keyvault.set_account_suspended(False)
                await self._change(row.id, {"suspended": False})
        return await self.get(account_id)

    async def delete(self, account_id: str, confirm: str) -> str:
        """Destroys the account's keys, then its tokens and itself; the receipt of it. Raises NotFound."""
        if confirm != account_id:
            raise invalid("confirm", "must repeat the account's id")
        row = await self._row(account_id)
        if row is None or row.state == CREATING:
            raise _no_such_account()
        await self._change(row.id, {"state": DELETING})
        return await self._remove(row)

    async def finish_interrupted(self) -> None:
        """Removes what an interrupted call left: accounts half made or half deleted."""
        for row in await self._in_thread(lambda: self._store.unfinished_accounts(_SWEEP_BATCH)):
            if row.state == DELETING or self._now_ms() - row.create_time_ms > _INTERRUPTED_AFTER_MS:
                await self._try_to_remove(row)

    def _first_token(self, account: str) -> tuple[Token, TokenRow]:
        token = make_token(Kind.ACCOUNT, self._random_bytes)
        digest = self._pepper.digest(token.text.encode())
        return token, TokenRow(token.id, account, digest, ACCOUNT_SCOPES, False, None, self._now_ms())

    def _tags(
        self, name: str, limits: LimitChange, idempotency_key: str
    ) -> tuple[bytes | None, bytes | None]:
        if not idempotency_key:
            return None, None
        request = (name, *request_parts(limits))
        return self._pepper.tag("account", idempotency_key), self._pepper.tag("account-request", *request)

    async def _made_before(self, tag: bytes | None, request_tag: bytes | None) -> Account:
        row = await self._in_thread(lambda: self._store.account_by_idempotency(tag) if tag else None)
        if row is None or row.state != ACTIVE:
            raise Aborted("a call with this idempotency key is not finished; try again", retry_after_s=1.0)
        if row.request_tag != request_tag:
            raise AlreadyExists(
                "the idempotency key was used with other values; use a new key",
                reason="IDEMPOTENCY_KEY_REUSED",
            )
        return self._view(row, await self._name_of(row))

    async def _name_of(self, row: AccountRow) -> str:
        if row.sealed_name is None:
            return ""
        try:
            with self._acting_for(row.id):
                return await self._profiles.open_name(row.sealed_name)
        except SealcombError as error:
            if error.reason in KEY_IS_OFF:
                return ""
            raise

    async def _change(self, account_id: str, values: dict[str, object]) -> None:
        await self._in_thread(lambda: self._store.change_account(account_id, values))
        self._sessions.drop_account(account_id)

    async def _remove(self, row: AccountRow) -> str:
        receipt = ""
        with acting_as(self._mint.for_keyvault(row.id, _DELETE_METHOD, _actor())):
            try:
                receipt = await self._keyvault.destroy_account()
            except SealcombError as error:
                # Interrupted before keyvault knew of it: there is no key to destroy.
                if error.reason != "ACCOUNT_NOT_FOUND":
                    raise
        await self._in_thread(lambda: self._store.delete_account(row.id))
        self._sessions.drop_account(row.id)
        self._profiles.drop_account(row.id)
        return receipt

    async def _try_to_remove(self, row: AccountRow) -> None:
        try:
            await self._remove(row)
        except SealcombError as error:
            _log.warning("account not yet removed", account=row.id, reason=error.reason)

    async def _active(self, account_id: str) -> AccountRow:
        row = await self._row(account_id)
        if row is None or row.state != ACTIVE:
            raise _no_such_account()
        return row

    async def _row(self, account_id: str) -> AccountRow | None:
        if not ids.is_id(account_id):
            return None
        return await self._in_thread(lambda: self._store.account(account_id))

    def _acting_for(self, account: str) -> AbstractContextManager[None]:
        method = current_caller().context.method
        return acting_as(self._mint.for_keyvault(account, method, _actor()))

    def _view(self, row: AccountRow, name: str) -> Account:
        return Account(
            row.id,
            name,
            self._sessions.limits_of(row),
            row.suspended,
            row.create_time_ms,
            self._sessions.calls_in_flight_of(row),
            row.quotas,
        )

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.to_thread(work)


def _actor() -> str:
    """The token that acts: the operator's, or none where the gateway finishes what was interrupted."""
    try:
        return current_caller().context.token_id
    except ContextRefused:
        return ""


def _no_such_account() -> NotFound:
    return NotFound("no such account", reason="ACCOUNT_NOT_FOUND")
