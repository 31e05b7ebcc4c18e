"""The store: a write is whole, durable and alone responsible for its own failure."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects import postgresql

from services.common.database import IDENTITY, migrate, open_engine
from services.common.errors import NotFound, Unavailable
from services.keyvault import store as store_module
from services.keyvault.schema import METADATA
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import Rig


async def test_migrations_make_the_schema_that_the_code_expects(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/keyvault.db")
    migrate(engine, "services.keyvault")
    migrate(engine, "services.keyvault")
    with engine.connect() as connection:
        mine = {"include_name": lambda name, *_where: name != IDENTITY.name}
        assert compare_metadata(MigrationContext.configure(connection, opts=mine), METADATA) == []
        indexes = {index["name"]: index for index in sa.inspect(connection).get_indexes("data_keys")}
        assert indexes["data_keys_current"]["unique"]
    engine.dispose()


async def test_a_step_that_fails_leaves_its_neighbours_alone(memory_rig: Rig) -> None:
    """Steps of one batch: the refused one changed nothing, the others are there."""
    store = memory_rig.store
    gate = threading.Event()

    def put(name: str, error: Exception | None = None) -> None:
        def step(tx: Transaction) -> None:
            tx.set_installation_value(name, b"x")
            if error is not None:
                raise error

        steps.append(asyncio.create_task(store.write(step)))

    steps: list[asyncio.Task[None]] = [asyncio.create_task(store.write(lambda _tx: _hold(gate)))]
    await asyncio.sleep(0.05)
    put("one")
    put("two", NotFound("no such thing"))
    put("three", RuntimeError("a bug"))
    put("one")
    put("four")
    await asyncio.sleep(0.05)
    gate.set()
    results = await asyncio.gather(*steps, return_exceptions=True)
    assert [type(result) for result in results[1:]] == [
        type(None),
        NotFound,
        RuntimeError,
        Unavailable,
        type(None),
    ]
    names = sorted(row[0] for row in memory_rig.sql("select name from installation"))
    assert names == ["four", "one"]


async def test_a_row_that_another_keyvault_wrote_first_is_seen_at_the_second_try(memory_rig: Rig) -> None:
    tries: list[int] = []

    def step(tx: Transaction, lost: int) -> None:
        tries.append(lost)
        tx.set_installation_value("raced", b"x")
        if len(tries) <= lost:
            raise sa.exc.IntegrityError("INSERT", {}, ValueError("it is there already"))

    await memory_rig.store.write(partial(step, lost=1))
    assert tries == [1, 1]
    assert await memory_rig.store.read(lambda tx: tx.installation_value("raced")) == b"x"
    tries.clear()
    with pytest.raises(Unavailable):
        await memory_rig.store.write(partial(step, lost=9))
    assert tries == [9, 9]


async def test_a_caller_who_left_before_its_turn_wrote_nothing(memory_rig: Rig) -> None:
    store, gate = memory_rig.store, threading.Event()
    first = asyncio.create_task(store.write(lambda _tx: _hold(gate)))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(store.write(lambda tx: tx.set_installation_value("gone", b"x")))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await first
    await store.write(lambda _tx: None)
    assert memory_rig.sql("select name from installation") == []


async def test_waiting_writes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_WAITING_MAX", 2)
    store, gate = Store.open(f"sqlite:///{tmp_path}/keyvault.db"), threading.Event()
    first = asyncio.create_task(store.write(lambda _tx: _hold(gate)))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(store.write(lambda _tx: None)) for _ in range(5)]
    await asyncio.sleep(0.05)
    gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(result, Unavailable) for result in results] == [False, False, True, True, True]
    await first
    store.close()


async def test_what_is_answered_is_on_disk(memory_rig: Rig) -> None:
    """Promise 8: WAL with synchronous=FULL, deleted content overwritten."""
    account = await memory_rig.account()
    settings = await memory_rig.read(
        lambda tx: [
            tx._connection.exec_driver_sql(f"pragma {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        ]
    )
    assert settings == ["wal", 2, 1, 1]
    assert memory_rig.sql("select id from accounts") == [(account,)]


async def test_only_a_writing_transaction_locks_the_account(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL the lock is FOR UPDATE; SQLite has one writer anyway."""
    statements: list[str] = []
    execute = sa.Connection.execute

    def note(self: sa.Connection, statement: Any, *arguments: Any) -> Any:
        statements.append(str(statement.compile(dialect=postgresql.dialect())))
        return execute(self, statement, *arguments)

    account = await memory_rig.account()
    monkeypatch.setattr(sa.Connection, "execute", note)
    await memory_rig.store.read(lambda tx: tx.account(account))
    await memory_rig.store.write(lambda tx: tx.account(account))
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert ["FOR UPDATE" in select for select in selects] == [False, True]


async def test_closing_finishes_what_is_waiting(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/keyvault.db")

    def put(number: int, tx: Transaction) -> None:
        tx.set_installation_value(str(number), b"x")

    writes = [asyncio.create_task(store.write(partial(put, number))) for number in range(100)]
    await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, store.close)
    await asyncio.gather(*writes)


def _hold(gate: threading.Event) -> None:
    gate.wait(5)
