"""SQL engines for the services' stores: SQLite by default, PostgreSQL by configuration.

Acknowledged means durable: SQLite runs with WAL and synchronous=FULL. secure_delete overwrites
deleted rows. Schemas change only by Alembic migrations, which every service runs at its start.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

_BUSY_TIMEOUT_MS = 10_000
# Any number that nothing else on the database locks.
_MIGRATION_LOCK = 7_325_104_406


def open_engine(url: str, *, statement_s: float | None = None) -> sa.Engine:
    """An engine for a database URL: `sqlite:///data/keyvault.db`, `postgresql://user@host/name`.

    `statement_s` bounds each statement, and each wait for a lock, where the database is a server.
    Raises ValueError where the driver is not installed.
    """
    if url.startswith("postgresql:"):
        # One driver for all; what follows `?` is libpq's, such as sslmode=verify-full.
        url = "postgresql+psycopg:" + url.removeprefix("postgresql:")
    if url.startswith("sqlite"):
        # Errors say which statement failed, never with which values.
        options: dict[str, Any] = {"hide_parameters": True}
    else:
        options = {
            "hide_parameters": True,
            "pool_pre_ping": True,
            "pool_timeout": 5,
            "connect_args": _server_options(statement_s),
        }
    try:
        engine = sa.create_engine(url, **options)
    except ModuleNotFoundError:
        raise ValueError("the database's driver is not installed: pip install sealcomb[postgresql]") from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        # pysqlite's own transaction handling would begin too late for `BEGIN IMMEDIATE`.
        sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _server_options(statement_s: float | None) -> dict[str, Any]:
    # A server that went away without a word is given up after about ten seconds.
    options: dict[str, Any] = {
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    if statement_s is None:
        return options
    timeout_ms = int(statement_s * 1000)
    return options | {"options": f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms}"}


def migrate(engine: sa.Engine, package: str) -> None:
    """Brings the schema up to date by the migrations in `<package>.migrations`."""
    with resources.as_file(resources.files(package) / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["engine"] = engine
        command.upgrade(config, "head")


def run_migrations(config: Config, metadata: sa.MetaData) -> None:
    """What the `env.py` of a service's migrations calls."""
    from alembic import context  # noqa: PLC0415  (only exists while Alembic runs env.py)

    engine: sa.Engine = config.attributes["engine"]
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # Processes that start together wait for one another.
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        else:
            # The same: BEGIN IMMEDIATE comes before the look at what has been done, and ends with all of it.
            connection.exec_driver_sql("SELECT 1")
        context.configure(
            connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    # Readers that turn into writers would otherwise fail with SQLITE_BUSY at once.
    options = connection.get_execution_options()
    connection.exec_driver_sql("BEGIN" if options.get("read_only") else "BEGIN IMMEDIATE")
