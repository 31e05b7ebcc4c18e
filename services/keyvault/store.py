"""Keyvault's store: transactions off the event loop, writers sharing one commit.

All writes go through one thread, which takes whatever is waiting and commits it together; a
write is reported only after its commit is durable. A step that fails changes nothing, and fails
no other step of its batch. What a write destroyed is in the ledger as well before it is reported.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
import structlog

from services.common.database import migrate, open_engine, readers
from services.common.errors import ResourceExhausted, SealcombError, Unavailable
from services.keyvault.ledger import Destruction, LedgerFailed
from services.keyvault.transaction import Transaction

_log = structlog.get_logger("keyvault-store")
_BATCH_MAX = 64
_WAITING_MAX = 4096
_READERS = 2
_Result = TypeVar("_Result")
_Step = Callable[[Transaction], Any]


class DatabaseUnreadable(ValueError):
    """The database cannot be copied, or a copy is not whole."""


class _Ledger(Protocol):
    def append(self, destructions: Iterable[Destruction], /) -> None:
        """Adds lines durably. Raises LedgerFailed."""


@dataclass(frozen=True, slots=True)
class _Job:
    step: _Step
    future: Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    job: _Job
    result: Any = None
    error: Exception | None = None
    destroyed: tuple[Destruction, ...] = ()


class Store:
    """Runs steps, plain functions of a transaction, against one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reads = readers(engine)
        # Transactions that were committed by this process.
        self.writes = 0
        self._ledger: _Ledger | None = None
        self._unledgered: list[Destruction] = []
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_WAITING_MAX)
        self._scrub: asyncio.Task[None] | None = None
        self._scrubbing = asyncio.Lock()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="keyvault-read")
        self._writer = threading.Thread(target=self._write_batches, name="keyvault-write", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, url: str) -> Store:
        """The store behind a database URL, its schema brought up to date."""
        engine = open_engine(url)
        migrate(engine, "services.keyvault")
        return cls(engine)

    def keep_ledger(self, ledger: _Ledger) -> None:
        """From now on the ledger gets what writes destroy."""
        self._ledger = ledger

    async def read(self, step: Callable[[Transaction], _Result]) -> _Result:
        """What a step reads, from one consistent state."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, step)

    async def write(self, step: Callable[[Transaction], _Result]) -> _Result:
        """What a step returns, once what it wrote is durable. If it raises, nothing is written.

        A step may run more than once: it must do nothing but use its transaction.
        """
        future: Future[Any] = Future()
        try:
            self._jobs.put_nowait(_Job(step, future))
        except queue.Full:
            raise Unavailable("keyvault is overloaded; try again", retry_after_s=1.0) from None
        result: _Result = await asyncio.wrap_future(future)
        return result

    async def scrub(self) -> None:
        """Removes deleted rows from the files of the database as well, as far as the database lets us.

        Raises Unavailable where its storage fails; what was deleted is deleted all the same.
        """
        if self._engine.dialect.name != "sqlite":
            return
        # Those who come while one waits for its turn share it.
        scrub = self._scrub
        if scrub is None:
            scrub = self._scrub = asyncio.create_task(self._scrub_next())
        await asyncio.shield(scrub)

    def close(self) -> None:
        """Finishes what is waiting and closes the database."""
        self._jobs.put(None)
        self._writer.join()
        self._readers.shutdown()
        self._engine.dispose()

    def _read(self, step: Callable[[Transaction], _Result]) -> _Result:
        try:
            with self._reads.connect() as connection:
                return step(Transaction(connection, writes=False))
        except sa.exc.SQLAlchemyError as error:
            raise _storage_error(error) from error

    async def _scrub_next(self) -> None:
        async with self._scrubbing:
            # From here on a newcomer's rows may be too late for this one.
            self._scrub = None
            await asyncio.get_running_loop().run_in_executor(self._readers, self._truncate_log)

    def _truncate_log(self) -> None:
        # Outside a transaction; a busy reader only means that the next checkpoint does it.
        try:
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                raw.close()
        except (sa.exc.SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error) as error:
            _log.error("deleted rows stay in the files for now", exception_type=type(error).__name__)
            raise Unavailable(
                "what was deleted is in the key store's files still; try again",
                reason="STORAGE_FAILED",
                retry_after_s=1.0,
            ) from error

    def _write_batches(self) -> None:
        closing = False
        while not closing:
            batch: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                # A caller who has gone before its turn wants nothing written.
                if job.future.set_running_or_notify_cancel():
                    batch.append(job)
                if len(batch) == _BATCH_MAX:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            closing = job is None
            if batch:
                for outcome in self._recorded(batch):
                    _resolve(outcome)

    def _recorded(self, batch: list[_Job]) -> list[_Outcome]:
        # Nothing is written while a destruction is known to the database alone: an answer to its
        # repetition would otherwise say that it can never come back.
        if not self._tell_ledger(()):
            return [_Outcome(job, error=_ledger_error()) for job in batch]
        outcomes = self._commit(batch)
        if self._tell_ledger(entry for outcome in outcomes for entry in outcome.destroyed):
            return outcomes
        return [
            _Outcome(outcome.job, error=_ledger_error()) if outcome.destroyed else outcome
            for outcome in outcomes
        ]

    def _tell_ledger(self, destroyed: Iterable[Destruction]) -> bool:
        if self._ledger is None:
            return True
        self._unledgered.extend(destroyed)
        if self._unledgered:
            try:
                self._ledger.append(self._unledgered)
            except LedgerFailed:
                _log.error("the ledger cannot be written", count=len(self._unledgered))
                return False
            self._unledgered.clear()
        return True

    def _commit(self, batch: list[_Job], *, again: bool = False) -> list[_Outcome]:
        try:
            with self._engine.begin() as connection:
                outcomes = [_run(connection, job) for job in batch]
            self.writes += 1
            return outcomes
        except Exception as error:  # noqa: BLE001  (the outermost loop of the writer)
            if len(batch) > 1:
                # One of them spoils the transaction, and it is not known which.
                return [outcome for job in batch for outcome in self._commit([job])]
            if isinstance(error, sa.exc.IntegrityError) and not again:
                # Another keyvault over this database wrote the same row first; now the step can see it.
                return self._commit(batch, again=True)
            if isinstance(error, sa.exc.SQLAlchemyError):
                _log.error("write failed", exception_type=type(error).__name__)
                return [_Outcome(batch[0], error=_storage_error(error))]
            return [_Outcome(batch[0], error=error)]


def copy_database(url: str, target: Path) -> None:
    """A consistent copy of an SQLite database in an empty file, whoever writes meanwhile."""
    engine = open_engine(url)
    try:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM INTO ?", (str(target),))
        finally:
            connection.close()
    except (sa.exc.SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        raise DatabaseUnreadable(str(error)) from None
    finally:
        engine.dispose()


def check_copy(path: Path) -> None:
    """Raises DatabaseUnreadable for a file that is not a whole database of keyvault's."""
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
            tables = set(sa.inspect(connection).get_table_names())
    except sa.exc.SQLAlchemyError:
        raise DatabaseUnreadable("it is damaged") from None
    finally:
        engine.dispose()
    if list(found) != ["ok"]:
        raise DatabaseUnreadable("it is damaged")
    if not {"accounts", "audit_events", "alembic_version"} <= tables:
        raise DatabaseUnreadable("it is not keyvault's")


def _run(connection: sa.Connection, job: _Job) -> _Outcome:
    try:
        with connection.begin_nested():
            transaction = Transaction(connection, writes=True)
            result = job.step(transaction)
            return _Outcome(
                job, result, destroyed=tuple(Destruction(*gone) for gone in transaction.destroyed)
            )
    except SealcombError as error:
        return _Outcome(job, error=error)


def _resolve(outcome: _Outcome) -> None:
    if outcome.error is None:
        outcome.job.future.set_result(outcome.result)
    else:
        outcome.job.future.set_exception(outcome.error)


def _ledger_error() -> SealcombError:
    return Unavailable("the ledger failed; try again", reason="LEDGER_FAILED", retry_after_s=1.0)


def _storage_error(error: sa.exc.SQLAlchemyError) -> SealcombError:
    cause: BaseException | None = error
    while cause is not None:
        # SQLite rolls back by itself when it is full, so that the last error is about the savepoint.
        text = str(getattr(cause, "orig", "")).lower()
        if "is full" in text or "no space" in text:
            return ResourceExhausted("the storage is full; nothing was written", reason="STORAGE_FULL")
        cause = cause.__context__
    return Unavailable("the key store failed; try again", reason="STORAGE_FAILED", retry_after_s=1.0)
