"""SQL engines for the services' stores: SQLite by default, any SQLAlchemy URL by configuration.

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


def open_engine(url: str) -> sa.Engine:
    """An engine for a database URL: `sqlite:///data/keyvault.db`, `postgresql://user@host/name`.

    Raises ValueError where the driver is not installed.
    """
    if url.startswith("postgresql:"):
        # One driver for all; what follows `?` is libpq's, such as sslmode=verify-full.
        url = "postgresql+psycopg:" + url.removeprefix("postgresql:")
    try:
        engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except ModuleNotFoundError:
        raise ValueError("the database's driver is not installed: pip install sealcomb[postgresql]") from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        # pysqlite's own transaction handling would begin too late for `BEGIN IMMEDIATE`.
        sa.event.listen(engine, "begin", _begin_immediate)
    return engine


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
            # Processes that start together wait for one another; SQLite's writers do so anyway.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
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
