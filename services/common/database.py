"""SQL engines for the services' stores: SQLite by default, PostgreSQL by configuration.

Acknowledged means durable: SQLite runs with WAL and synchronous=FULL, PostgreSQL with synchronous_commit,
also where its own settings say less. secure_delete overwrites deleted rows of SQLite. Schemas change only
by Alembic migrations, which every service runs at its start, and which can be taken back one by one. A
database is one service's: it says whose, and it is refused to any other.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

_BUSY_TIMEOUT_MS = 10_000
# Any number that nothing else on the database locks.
_MIGRATION_LOCK = 7_325_104_406
# A statement that takes longer is given up where the database is a server.
STATEMENT_S = 30.0
_POOL = 5
_POOL_MORE = 5
_POOL_WAIT_S = 5

# Whose database it is, and a name of its own that no other database has.
IDENTITY = sa.Table(
    "sealcomb_database",
    sa.MetaData(),
    sa.Column("service", sa.String(32), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False),
)


class DatabaseRefused(ValueError):
    """The database is not one that this version of this service can work with."""


def open_engine(url: str, *, statement_s: float = STATEMENT_S) -> sa.Engine:
    """An engine for a database URL: `sqlite:///data/keyvault.db`, `postgresql://user@host/name`.

    `statement_s` bounds each statement, and each wait for a lock, where the database is a server.
    Raises DatabaseRefused for any other URL and where the driver is not installed.
    """
    scheme, colon, rest = url.partition(":")
    if scheme in ("postgresql", "postgres"):
        # One driver for all; what follows `?` is libpq's, such as sslmode=verify-full.
        url = f"postgresql+psycopg:{rest}"
    elif not colon or scheme not in ("sqlite", "postgresql+psycopg"):
        raise DatabaseRefused("the database must be sqlite:///<file> or postgresql://<user>@<host>/<name>")
    # Errors say which statement failed, never with which values.
    options: dict[str, Any] = {"hide_parameters": True}
    if scheme != "sqlite":
        options |= {
            "pool_pre_ping": True,
            "pool_size": _POOL,
            "max_overflow": _POOL_MORE,
            "pool_timeout": _POOL_WAIT_S,
            "connect_args": _server_options(statement_s),
        }
    try:
        engine = sa.create_engine(url, **options)
    except ModuleNotFoundError:
        raise DatabaseRefused(
            "the database's driver is not installed: pip install sealcomb[postgresql]"
        ) from None
    except sa.exc.ArgumentError:
        # The text would repeat the URL.
        raise DatabaseRefused("the database's URL cannot be read") from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        # pysqlite's own transaction handling would begin too late for `BEGIN IMMEDIATE`.
        sa.event.listen(engine, "begin", _begin_immediate)
        sa.event.listen(engine, "handle_error", _leave_read_only)
    else:
        sa.event.listen(engine, "connect", _require_durable)
    return engine


def readers(engine: sa.Engine) -> sa.Engine:
    """The engine for transactions that only read, each from one consistent state."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(read_only=True)
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def migrate(engine: sa.Engine, package: str, revision: str = "head") -> None:
    """Brings the schema up to date by the migrations in `<package>.migrations`, or forward to one of them.

    Raises DatabaseRefused for the database of another service or of a newer version.
    """
    with _migrations(engine, package) as config:
        command.upgrade(config, revision)


def migrate_at(url: str, package: str) -> None:
    """The same for a database by its URL; ValueError, without the statement, where it does not answer."""
    engine = open_engine(url)
    try:
        migrate(engine, package)
    except sa.exc.SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()
        raise DatabaseRefused(cause[0] if cause else type(error).__name__) from None
    finally:
        engine.dispose()


def downgrade(engine: sa.Engine, package: str, revision: str = "-1") -> None:
    """Takes migrations back, one or down to a revision, before an older version is started."""
    with _migrations(engine, package) as config:
        command.downgrade(config, revision)


def database_id(engine: sa.Engine) -> str:
    """The name that a migrated database was given when it was made; its copies have the same."""
    with readers(engine).connect() as connection:
        return str(connection.execute(sa.select(IDENTITY.c.id)).scalar_one())


def revisions(connection: sa.Connection, package: str) -> tuple[str, str]:
    """The last migration that a database has (empty: none), and the last that this version knows."""
    with resources.as_file(resources.files(package) / "migrations") as folder:
        head = ScriptDirectory(str(folder)).get_current_head() or ""
    return ",".join(MigrationContext.configure(connection).get_current_heads()), head


@contextmanager
def _migrations(engine: sa.Engine, package: str) -> Iterator[Config]:
    with resources.as_file(resources.files(package) / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["engine"] = engine
        config.attributes["service"] = package.rpartition(".")[2]
        yield config


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
        _claim(connection, config.attributes["service"])
        _refuse_newer(connection, config)
        context.configure(
            connection=connection,
            target_metadata=metadata,
            render_as_batch=True,
            transactional_ddl=True,
            # Whose database it is no service's migrations say.
            include_name=lambda name, kind, _: kind != "table" or name != IDENTITY.name,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


def _claim(connection: sa.Connection, service: str) -> None:
    """Marks a new database as the service's; one from before there were marks as well."""
    IDENTITY.create(connection, checkfirst=True)
    owners = connection.execute(sa.select(IDENTITY.c.service)).scalars().all()
    if not owners:
        connection.execute(IDENTITY.insert().values(service=service, id=secrets.token_hex(16)))
    elif list(owners) != [service]:
        raise DatabaseRefused(f"the database is {owners[0]}'s; give each service a database of its own")


def _refuse_newer(connection: sa.Connection, config: Config) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise DatabaseRefused(
                f"the database is of a newer version ({revision}; this one knows up to {max(known)}): "
                "start that version, or take its migrations back first"
            )


def _server_options(statement_s: float) -> dict[str, Any]:
    timeout_ms = int(statement_s * 1000)
    # A server that went away without a word is given up after about ten seconds.
    return {
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms}",
    }


def _require_durable(connection: Any, _record: Any) -> None:
    # A commit that is answered before it is on a disk would be an acknowledged write that a crash loses.
    connection.autocommit = True
    with connection.cursor() as cursor:
        if cursor.execute("SHOW synchronous_commit").fetchone()[0] in ("off", "local"):
            cursor.execute("SET synchronous_commit = on")
    connection.autocommit = False


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


def _leave_read_only(context: sa.engine.ExceptionContext) -> None:
    # Where a file cannot be opened for writing in the moment of connecting, SQLite opens it for reading and
    # says nothing; such a connection would refuse every write for as long as it lives.
    if "readonly database" in str(context.original_exception):
        context.is_disconnect = True
