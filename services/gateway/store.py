"""The gateway's accounts and tokens in SQL.

Every method is one transaction; reads are single-row or one page. A change that other policy
processes must learn of is numbered in the transaction that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from services.common.database import migrate, open_engine
from services.gateway.changes.store import ACCOUNT, TOKEN, ChangeLog, note_change
from services.gateway.records import ACTIVE, CREATING, DELETING, OPERATOR, AccountRow, Taken, TokenRow
from services.gateway.schema import accounts as _accounts
from services.gateway.schema import tokens as _tokens
from services.gateway.schema import usage as _usage
from services.gateway.usage.store import UsageStore

_STATEMENT_S = 5.0


class GatewayStore:
    """Accounts and tokens. Blocking; a point read of a file takes well below a millisecond."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url, statement_s=_STATEMENT_S)
        self._reads = self._engine.execution_options(read_only=True)
        # Whether a point read may be made where nothing must wait.
        self.is_local = self._engine.dialect.name == "sqlite"

    def migrate(self) -> None:
        """Brings the schema up to date."""
        migrate(self._engine, "services.gateway")

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    def change_log(self) -> ChangeLog:
        """What is changed in this database, by whichever process."""
        return ChangeLog(self._engine)

    def usage(self) -> UsageStore:
        """What accounts used, in this database."""
        return UsageStore(self._engine)

    # --- accounts

    def add_account(self, account: AccountRow) -> None:
        """Adds an account; Taken if its idempotency tag is there."""
        values = {column.name: getattr(account, column.name) for column in _accounts.columns}
        try:
            with self._engine.begin() as connection:
                connection.execute(_accounts.insert().values(values))
        except IntegrityError:
            raise Taken from None

    def activate_account(self, account_id: str, sealed_name: bytes, token: TokenRow) -> None:
        """Makes a new account visible, with its name and first token, all at once."""
        with self._engine.begin() as connection:
            connection.execute(
                _accounts.update()
                .where(_accounts.c.id == account_id, _accounts.c.state == CREATING)
                .values(state=ACTIVE, sealed_name=sealed_name)
            )
            connection.execute(_tokens.insert().values(_token_values(token)))

    def account(self, account_id: str) -> AccountRow | None:
        """One account in any state."""
        return self._one_account(_accounts.c.id == account_id)

    def account_by_idempotency(self, tag: bytes) -> AccountRow | None:
        """The account that was made under this idempotency tag."""
        return self._one_account(_accounts.c.idempotency_tag == tag)

    def list_accounts(self, after: tuple[int, str], limit: int) -> list[AccountRow]:
        """Active accounts in order of creation, after a position."""
        place = sa.tuple_(_accounts.c.create_time_ms, _accounts.c.id)
        query = (
            sa.select(_accounts)
            .where(_accounts.c.state == ACTIVE, place > sa.tuple_(*map(sa.literal, after)))
            .order_by(_accounts.c.create_time_ms, _accounts.c.id)
            .limit(limit)
        )
        with self._reads.connect() as connection:
            return [AccountRow(**row) for row in connection.execute(query).mappings()]

    def unfinished_accounts(self, limit: int) -> list[AccountRow]:
        """Accounts whose making or deletion was interrupted."""
        query = sa.select(_accounts).where(_accounts.c.state.in_((CREATING, DELETING))).limit(limit)
        with self._reads.connect() as connection:
            return [AccountRow(**row) for row in connection.execute(query).mappings()]

    def change_account(self, account_id: str, values: Mapping[str, object]) -> None:
        """Changes columns of one account."""
        with self._engine.begin() as connection:
            connection.execute(_accounts.update().where(_accounts.c.id == account_id).values(dict(values)))
            note_change(connection, ACCOUNT, account_id)

    def delete_account(self, account_id: str) -> None:
        """Deletes an account, its tokens and its usage."""
        with self._engine.begin() as connection:
            connection.execute(_usage.delete().where(_usage.c.account == account_id))
            connection.execute(_tokens.delete().where(_tokens.c.account == account_id))
            connection.execute(_accounts.delete().where(_accounts.c.id == account_id))
            note_change(connection, ACCOUNT, account_id)

    # --- tokens

    def add_token(self, token: TokenRow, *, ends: tuple[str, int] | None = None) -> None:
        """Adds a token; `ends` gives another token its expiry in the same transaction. Raises Taken."""
        try:
            with self._engine.begin() as connection:
                connection.execute(_tokens.insert().values(_token_values(token)))
                if ends is not None:
                    old_id, expire_time_ms = ends
                    connection.execute(
                        _tokens.update().where(_tokens.c.id == old_id).values(expire_time_ms=expire_time_ms)
                    )
                    note_change(connection, TOKEN, old_id)
        except IntegrityError:
            raise Taken from None

    def token(self, token_id: str) -> TokenRow | None:
        """One token, whoever's it is."""
        return self._one_token(_tokens.c.id == token_id)

    def good_tokens(self, token_ids: Sequence[str], now_ms: float) -> set[str]:
        """Those of these tokens that still let somebody in."""
        is_active = sa.and_(_accounts.c.state == ACTIVE, _accounts.c.suspended.is_(False))
        query = (
            sa.select(_tokens.c.id)
            .outerjoin(_accounts, _accounts.c.id == _tokens.c.account)
            .where(
                _tokens.c.id.in_(token_ids),
                _tokens.c.revoke_time_ms.is_(None),
                sa.or_(_tokens.c.expire_time_ms.is_(None), _tokens.c.expire_time_ms > now_ms),
                sa.or_(_tokens.c.account == OPERATOR, is_active),
            )
        )
        with self._reads.connect() as connection:
            return set(connection.execute(query).scalars())

    def token_by_idempotency(self, tag: bytes) -> TokenRow | None:
        """The token that was made under this idempotency tag."""
        return self._one_token(_tokens.c.idempotency_tag == tag)

    def list_tokens(self, account: str, after: tuple[int, str], limit: int) -> list[TokenRow]:
        """Tokens of an account in order of creation, after a position."""
        place = sa.tuple_(_tokens.c.create_time_ms, _tokens.c.id)
        query = (
            sa.select(_tokens)
            .where(_tokens.c.account == account, place > sa.tuple_(*map(sa.literal, after)))
            .order_by(_tokens.c.create_time_ms, _tokens.c.id)
            .limit(limit)
        )
        with self._reads.connect() as connection:
            return [_token_row(row) for row in connection.execute(query).mappings()]

    def count_tokens(self, account: str) -> int:
        """How many tokens an account has, ended ones included."""
        query = sa.select(sa.func.count()).select_from(_tokens).where(_tokens.c.account == account)
        with self._reads.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def forget_ended_tokens(self, account: str, before_ms: int) -> None:
        """Deletes an account's tokens that ended before a time."""
        ended = sa.or_(_tokens.c.expire_time_ms < before_ms, _tokens.c.revoke_time_ms < before_ms)
        with self._engine.begin() as connection:
            connection.execute(_tokens.delete().where(_tokens.c.account == account, ended))

    def revoke_token(self, token_id: str, now_ms: int) -> None:
        """Ends a token; the time of an earlier revocation stays."""
        with self._engine.begin() as connection:
            connection.execute(
                _tokens.update()
                .where(_tokens.c.id == token_id, _tokens.c.revoke_time_ms.is_(None))
                .values(revoke_time_ms=now_ms)
            )
            note_change(connection, TOKEN, token_id)

    def add_first_operator_token(self, token: TokenRow, before: Callable[[], None]) -> bool:
        """Adds this token if there is no operator token yet, after `before`; returns whether it did.

        Of several processes that try at once, one does.
        """
        with self._engine.connect() as connection, connection.begin() as transaction:
            # First, as it waits for whoever else does the same.
            note_change(connection, ACCOUNT, OPERATOR)
            query = sa.select(_tokens.c.id).where(_tokens.c.account == OPERATOR).limit(1)
            if connection.execute(query).first() is not None:
                transaction.rollback()
                return False
            before()
            connection.execute(_tokens.insert().values(_token_values(token)))
            return True

    def replace_operator_tokens(self, token: TokenRow, now_ms: int) -> None:
        """Ends every operator token and adds this one, all at once."""
        with self._engine.begin() as connection:
            connection.execute(
                _tokens.update()
                .where(_tokens.c.account == OPERATOR, _tokens.c.revoke_time_ms.is_(None))
                .values(revoke_time_ms=now_ms)
            )
            connection.execute(_tokens.insert().values(_token_values(token)))
            note_change(connection, ACCOUNT, OPERATOR)

    def mark_used(self, times_ms: Sequence[tuple[str, int]]) -> None:
        """Writes when tokens were last used; a later time that is there already stays."""
        used_ms = sa.bindparam("used_ms", type_=sa.BigInteger)
        statement = (
            _tokens.update()
            .where(_tokens.c.id == sa.bindparam("token_id"))
            .where(sa.or_(_tokens.c.used_time_ms.is_(None), _tokens.c.used_time_ms < used_ms))
            .values(used_time_ms=used_ms)
        )
        with self._engine.begin() as connection:
            connection.execute(
                # In one order, so that two processes cannot wait for each other.
                statement,
                [{"token_id": token_id, "used_ms": time_ms} for token_id, time_ms in sorted(times_ms)],
            )

    def _one_account(self, condition: sa.ColumnElement[bool]) -> AccountRow | None:
        with self._reads.connect() as connection:
            row = connection.execute(sa.select(_accounts).where(condition)).mappings().one_or_none()
        return None if row is None else AccountRow(**row)

    def _one_token(self, condition: sa.ColumnElement[bool]) -> TokenRow | None:
        with self._reads.connect() as connection:
            row = connection.execute(sa.select(_tokens).where(condition)).mappings().one_or_none()
        return None if row is None else _token_row(row)


def _token_values(token: TokenRow) -> dict[str, object]:
    values: dict[str, object] = {column.name: getattr(token, column.name) for column in _tokens.columns}
    values["scopes"] = " ".join(token.scopes)
    return values


def _token_row(row: sa.RowMapping) -> TokenRow:
    return TokenRow(**{**row, "scopes": tuple(row["scopes"].split())})
