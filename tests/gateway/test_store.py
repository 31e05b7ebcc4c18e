"""The gateway's store over SQLite and PostgreSQL: one suite for both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from services.common import ids
from services.gateway.changes import store as changes_module
from services.gateway.changes.store import Change
from services.gateway.records import ACTIVE, CREATING, OPERATOR, AccountRow, Taken, TokenRow
from services.gateway.store import GatewayStore
from tests.gateway.rig import ROOT
from tests.postgres import Postgres


@pytest.fixture
def store(url: str) -> Iterator[GatewayStore]:
    opened = GatewayStore(url)
    opened.migrate()
    yield opened
    opened.close()


def account_row(name: str = "a", **fields: object) -> AccountRow:
    row = AccountRow(name * 26, 5, ACTIVE, False, None, None)
    return replace(row, **fields)  # type: ignore[arg-type]


def token_row(name: str = "t", account: str = "a" * 26, **fields: object) -> TokenRow:
    row = TokenRow(name * 26, account, bytes(32), ("read", "write"), False, b"sealed", 5)
    return replace(row, **fields)  # type: ignore[arg-type]


def test_what_is_stored_is_what_is_read(store: GatewayStore) -> None:
    account = account_row(
        calls_per_second=0.5, burst=3, idempotency_tag=b"i" * 32, request_tag=b"r" * 32,
        calls_in_flight=4, quotas={"calls_per_day": 1 << 40},
    )  # fmt: skip
    token = token_row(expire_time_ms=1 << 42, idempotency_tag=b"j" * 32)
    store.add_account(account)
    store.add_token(token)
    assert store.account(account.id) == account
    assert store.account_by_idempotency(b"i" * 32) == account
    assert store.token(token.id) == token
    assert store.token_by_idempotency(b"j" * 32) == token
    assert store.account("z" * 26) is None
    assert store.token("z" * 26) is None


def test_an_idempotency_tag_is_taken_once(store: GatewayStore) -> None:
    store.add_account(account_row("a", idempotency_tag=b"i" * 32))
    with pytest.raises(Taken):
        store.add_account(account_row("b", idempotency_tag=b"i" * 32))
    assert store.account("b" * 26) is None
    store.add_token(token_row("t", idempotency_tag=b"i" * 32))
    with pytest.raises(Taken):
        store.add_token(token_row("u", idempotency_tag=b"i" * 32), ends=("t" * 26, 7))
    ended = store.token("t" * 26)
    assert ended is not None
    assert ended.expire_time_ms is None


def test_an_account_is_seen_once_it_is_whole(store: GatewayStore) -> None:
    store.add_account(account_row(state=CREATING))
    assert store.list_accounts((0, ""), 10) == []
    assert [row.id for row in store.unfinished_accounts(10)] == ["a" * 26]
    store.activate_account("a" * 26, b"name", token_row())
    assert [row.sealed_name for row in store.list_accounts((0, ""), 10)] == [b"name"]
    assert store.count_tokens("a" * 26) == 1


def test_pages_follow_the_order_of_creation(store: GatewayStore) -> None:
    for number, name in enumerate("dbca"):
        store.add_account(account_row(name, create_time_ms=number // 2))
        store.add_token(token_row(name, create_time_ms=number // 2))
    for read in (store.list_accounts, lambda after, limit: store.list_tokens("a" * 26, after, limit)):
        first = read((0, ""), 3)
        assert [row.id[0] for row in first] == ["b", "d", "a"]
        assert [row.id[0] for row in read((first[-1].create_time_ms, first[-1].id), 3)] == ["c"]


def test_a_revocation_keeps_its_first_time_and_a_deleted_account_leaves_nothing(store: GatewayStore) -> None:
    store.add_account(account_row())
    store.add_token(token_row())
    store.revoke_token("t" * 26, 10)
    store.revoke_token("t" * 26, 20)
    revoked = store.token("t" * 26)
    assert revoked is not None
    assert revoked.revoke_time_ms == 10
    store.delete_account("a" * 26)
    assert store.account("a" * 26) is None
    assert store.token("t" * 26) is None


def test_the_latest_use_stays_whoever_writes_it_down(store: GatewayStore) -> None:
    store.add_token(token_row())
    for time_ms in (1 << 41, 5, 1 << 40):
        store.mark_used([("t" * 26, time_ms), ("z" * 26, 1)])
    used = store.token("t" * 26)
    assert used is not None
    assert used.used_time_ms == 1 << 41


def test_every_change_that_others_must_know_has_a_number(store: GatewayStore) -> None:
    log = store.change_log()
    start = log.position()
    store.add_account(account_row())
    store.add_token(token_row())
    assert log.position() == start, "nobody can hold what is new"
    store.change_account("a" * 26, {"suspended": True})
    store.add_token(token_row("u"), ends=("t" * 26, 9))
    store.revoke_token("u" * 26, 10)
    store.replace_operator_tokens(token_row("o", OPERATOR), 10)
    store.delete_account("a" * 26)
    seen = log.since(start)
    assert seen.changes == (
        Change("account", "a" * 26),
        Change("token", "t" * 26),
        Change("token", "u" * 26),
        Change("account", OPERATOR),
        Change("account", "a" * 26),
    )
    assert not seen.lost
    assert log.since(seen.position) == type(seen)(seen.position, (), False)


def test_too_many_changes_or_a_database_put_back_are_told(
    store: GatewayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "_READ_MAX", 4)
    log = store.change_log()
    start = log.position()
    for _ in range(6):
        store.revoke_token("t" * 26, 1)
    assert log.since(start).lost
    assert not log.since(start + 2).lost
    assert log.since(log.position() + 1).lost


def test_a_reader_never_misses_a_change_of_many_writers(store: GatewayStore) -> None:
    """B5: numbers are given in the order of commits, so no later commit has an earlier number."""
    log = store.change_log()
    position, seen = log.position(), 0

    def write(number: int) -> None:
        for _ in range(15):
            store.revoke_token(f"{number:026}", 1)

    with ThreadPoolExecutor(5) as pool:
        work = [pool.submit(write, number) for number in range(4)]
        while True:
            done_before = all(one.done() for one in work)
            found = log.since(position)
            assert not found.lost
            seen += len(found.changes)
            position = found.position
            if done_before:
                break
        for one in work:
            one.result()
    assert seen == 60


def test_processes_that_start_together_migrate_once_and_make_one_operator_token(url: str) -> None:
    script = (
        "import sys\n"
        "from services.gateway.records import TokenRow\n"
        "from services.gateway.store import GatewayStore\n"
        "store = GatewayStore(sys.argv[1])\n"
        "store.migrate()\n"
        "row = TokenRow(sys.argv[2] * 26, '', bytes(32), ('operator',), False, None, 1)\n"
        "print(store.add_first_operator_token(row, lambda: print('writes', end=' ')))\n"
    )

    def start(number: int) -> str:
        command = [sys.executable, "-c", script, url, str(number)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(3) as pool:
        said = sorted(pool.map(start, range(3)))
    assert said == ["False", "False", "writes True"]
    store = GatewayStore(url)
    assert store.count_tokens(OPERATOR) == 1
    store.close()


def test_the_schema_goes_down_and_up_again(url: str) -> None:
    script = (
        "import sys\n"
        "from importlib import resources\n"
        "from alembic import command\n"
        "from alembic.config import Config\n"
        "from services.common.database import open_engine\n"
        "config = Config()\n"
        "config.set_main_option('script_location', str(resources.files('services.gateway') / 'migrations'))\n"
        "config.attributes['engine'] = open_engine(sys.argv[1])\n"
        "config.attributes['service'] = 'gateway'\n"
        "command.upgrade(config, 'head')\n"
        "command.downgrade(config, '0001')\n"
        "command.upgrade(config, 'head')\n"
        "command.check(config)\n"
        "command.downgrade(config, 'base')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, url], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


async def test_postgresql_pushes_that_there_are_changes(postgres: Postgres) -> None:
    store = GatewayStore(postgres.make_database("d" + ids.new_id()))
    store.migrate()
    wakeups = store.change_log().wakeups()
    await asyncio.wait_for(anext(wakeups), 30)
    await asyncio.to_thread(store.revoke_token, "t" * 26, 1)
    await asyncio.wait_for(anext(wakeups), 30)
    await wakeups.aclose()  # type: ignore[attr-defined]
    store.close()


def test_a_statement_that_hangs_is_given_up(postgres: Postgres) -> None:
    store = GatewayStore(postgres.url)
    store._engine.dispose()
    with store._engine.connect() as connection:
        shown = connection.execute(sa.text("SHOW statement_timeout")).scalar_one()
    store.close()
    assert shown == "5s"
