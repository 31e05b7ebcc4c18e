"""The statements about accounts on their way to another key: a part of keyvault's transaction."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from services.keyvault.records import AccountKey, DataKeyRecord, MoveProgress, MoveRecord, Wrapping
from services.keyvault.schema import ACCOUNT_KEYS, DATA_KEYS, KEY_MOVES, RETIRED_KEYS, REWRAPPED

_STAGED = sa.select(REWRAPPED.c.id).where(REWRAPPED.c.id == DATA_KEYS.c.id).exists()
_MOVE = sa.select(KEY_MOVES).where(KEY_MOVES.c.account == sa.bindparam("account"))
_UNSTAGED = (
    sa.select(DATA_KEYS)
    .where(DATA_KEYS.c.account == sa.bindparam("account"), ~_STAGED)
    .limit(sa.bindparam("most"))
)


class MoveStatements:
    """What Transaction inherits. Values only: nothing here decides."""

    _connection: sa.Connection

    def providers(self) -> frozenset[str]:
        """Every KMS that holds a key of an account, one to come or one to be destroyed included."""
        query = sa.union(*(sa.select(table.c.provider) for table in (ACCOUNT_KEYS, KEY_MOVES, RETIRED_KEYS)))
        return frozenset(self._connection.execute(query).scalars())

    # Moves.

    def move(self, account: str) -> MoveRecord | None:
        """The account's move, if it is on one."""
        row = self._connection.execute(_MOVE, {"account": account}).one_or_none()
        if row is None:
            return None
        key = AccountKey(row.account, row.version, row.handle, row.provider)
        return MoveRecord(key, row.start_us, row.action, row.peer, row.token_id, row.method, row.request_id)

    def moving_accounts(self, limit: int) -> list[str]:
        """Accounts on a move, the longest first."""
        query = sa.select(KEY_MOVES.c.account).order_by(KEY_MOVES.c.start_us).limit(limit)
        return list(self._connection.execute(query).scalars())

    def begin_move(self, move: MoveRecord) -> None:
        """Remembers a move of an account that is on none."""
        self._connection.execute(
            sa.insert(KEY_MOVES).values(
                account=move.key.account,
                version=move.key.version,
                provider=move.key.provider,
                handle=move.key.handle,
                start_us=move.start_us,
                action=move.action,
                peer=move.peer,
                token_id=move.token_id,
                method=move.method,
                request_id=move.request_id,
            )
        )

    def end_move(self, account: str) -> None:
        """Forgets a move and what was re-wrapped for it."""
        self._connection.execute(sa.delete(REWRAPPED).where(REWRAPPED.c.account == account))
        self._connection.execute(sa.delete(KEY_MOVES).where(KEY_MOVES.c.account == account))

    def move_progress(self, account: str) -> MoveProgress | None:
        """How far the account's move is, if it is on one."""
        done = sa.select(sa.func.count()).where(REWRAPPED.c.account == account).scalar_subquery()
        everything = sa.select(sa.func.count()).where(DATA_KEYS.c.account == account).scalar_subquery()
        columns = (KEY_MOVES.c.version, KEY_MOVES.c.provider, KEY_MOVES.c.start_us, done, everything)
        row = self._connection.execute(
            sa.select(*columns).where(KEY_MOVES.c.account == account)
        ).one_or_none()
        return None if row is None else MoveProgress(*row)

    def data_keys_to_rewrap(self, account: str, limit: int) -> list[DataKeyRecord]:
        """Data keys of an account that nothing was staged for yet."""
        return [
            DataKeyRecord(Wrapping(account, row.resource, row.purpose, row.id), row.version, row.wrapped)
            for row in self._connection.execute(_UNSTAGED, {"account": account, "most": limit})
        ]

    def stage(self, account: str, records: Sequence[DataKeyRecord]) -> None:
        """Keeps new wrappings of data keys beside the present ones; of those that are still there."""
        names = [record.wrapping.key_id for record in records]
        if not names:
            return
        self._connection.execute(sa.delete(REWRAPPED).where(REWRAPPED.c.id.in_(names)))
        there = sa.select(DATA_KEYS.c.id).where(DATA_KEYS.c.account == account, DATA_KEYS.c.id.in_(names))
        present = set(self._connection.execute(there).scalars())
        rows = [
            {"id": record.wrapping.key_id, "account": account, "wrapped": record.wrapped}
            for record in records
            if record.wrapping.key_id in present
        ]
        if rows:
            self._connection.execute(sa.insert(REWRAPPED), rows)

    def rewrap_data_keys(self, account: str, version: int) -> None:
        """Puts every staged wrapping in force."""
        staged = sa.select(REWRAPPED.c.wrapped).where(REWRAPPED.c.id == DATA_KEYS.c.id).scalar_subquery()
        self._connection.execute(
            sa.update(DATA_KEYS)
            .where(DATA_KEYS.c.account == account, _STAGED)
            .values(version=version, wrapped=staged)
        )

    def forget_rewrapped(self, account: str, resource: str) -> None:
        """Forgets what was staged for a resource's data keys."""
        of_resource = sa.select(DATA_KEYS.c.id).where(
            DATA_KEYS.c.account == account, DATA_KEYS.c.resource == resource
        )
        self._connection.execute(sa.delete(REWRAPPED).where(REWRAPPED.c.id.in_(of_resource)))

    # Keys that their KMS is to destroy.

    def retire(self, keys: Sequence[AccountKey]) -> None:
        """Remembers keys until their KMS has destroyed them."""
        if keys:
            rows = [
                {
                    "account": key.account,
                    "version": key.version,
                    "provider": key.provider,
                    "handle": key.handle,
                }
                for key in keys
            ]
            self._connection.execute(sa.insert(RETIRED_KEYS), rows)

    def retired_keys(self, limit: int, account: str = "", after: int = 0) -> list[tuple[int, AccountKey]]:
        """Keys to be destroyed, each with its place, after one; all accounts' where none is named."""
        query = (
            sa.select(RETIRED_KEYS).where(RETIRED_KEYS.c.id > after).order_by(RETIRED_KEYS.c.id).limit(limit)
        )
        if account:
            query = query.where(RETIRED_KEYS.c.account == account)
        return [
            (row.id, AccountKey(row.account, row.version, row.handle, row.provider))
            for row in self._connection.execute(query)
        ]

    def forget_retired(self, places: Sequence[int]) -> None:
        """Forgets keys that are destroyed."""
        self._connection.execute(sa.delete(RETIRED_KEYS).where(RETIRED_KEYS.c.id.in_(places)))
