"""Works on ingestions: takes leases, runs them, and says how each run ended.

Leases are extended while a run lives; a run whose lease is lost is stopped. A stop of the process gives
its leases back at once; a kill lets them lapse. Nothing here opens anything: each run works under the
permits of its own grant, and what keyvault refuses ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from services.common import ids
from services.common.clock import Clock
from services.common.context import acting_as
from services.common.errors import Kind, SealcombError
from services.common.process import overwrite_free_blocks
from services.ingest.connections.credentials import TokenHolders
from services.ingest.ingestions import schedule
from services.ingest.ingestions.authority import Authority, Permits
from services.ingest.ingestions.records import Row, State
from services.ingest.ingestions.run import NeedsToken, Run, Tools
from services.ingest.ingestions.seals import Scope
from services.ingest.ingestions.store import IngestionStore, Lease, LeaseLost
from services.ingest.sources.contract import CredentialRefused

TOKEN_LOST = "TOKEN_LOST"  # noqa: S105  (a reason)
_BACKOFF_S_MAX = 300.0
# With these the work is over, and so is a schedule: somebody has to say again that it shall go on.
_STOPPED = frozenset(
    {
        "PERMIT_ENDED",
        "CONTEXT_REFUSED",
        "KEY_DISABLED",
        "KEY_NOT_FOUND",
        "ACCOUNT_SUSPENDED",
        "ACCOUNT_NOT_FOUND",
        "COLLECTION_NOT_FOUND",
        "CREDENTIAL_REFUSED",
        "DISCONNECTED",
    }
)
_LATER = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED, Kind.ABORTED, Kind.RESOURCE_EXHAUSTED})
_log = structlog.get_logger("ingestions")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How the worker works."""

    runs_max: int = 2
    lease_s: float = 30.0
    poll_s: float = 1.0
    # Starts without any progress, after which an ingestion has failed.
    starts_max: int = 10
    backoff_s: float = 2.0


class Worker:
    """The runs of this process."""

    def __init__(
        self,
        *,
        store: IngestionStore,
        tools: Tools,
        permits: Permits,
        tokens: TokenHolders,
        clock: Clock,
        settings: WorkerSettings | None = None,
        holder: str = "",
    ) -> None:
        self._store = store
        self._tools = tools
        self._permits = permits
        self._tokens = tokens
        self._clock = clock
        self._settings = settings or WorkerSettings()
        self.holder = holder or ids.new_id()
        self._runs: dict[str, tuple[Row, asyncio.Task[None]]] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    @property
    def lease_until_ms(self) -> int:
        """When a lease that is taken now lapses."""
        return int((self._clock.now_s() + self._settings.lease_s) * 1000)

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def run(self) -> None:
        """Works until it is cancelled; then gives all leases back and wipes all tokens."""
        beat = asyncio.create_task(self._beat())
        try:
            while True:
                try:
                    await self._claim()
                except SealcombError as error:
                    _log.warning("no ingestion can be claimed", reason=error.reason)
                await self._rest()
        finally:
            beat.cancel()
            self._stopping = True
            await self._stop(lambda _row: True)
            self._tokens.drop_all()

    async def halt(self, account: str, resource: str = "") -> None:
        """Stops the runs of an account, or of its collection or connection, at once."""

        def concerned(row: Row) -> bool:
            return row.account == account and (
                not resource or resource in (row.collection_id, row.connection_id)
            )

        await self._stop(concerned)

    async def drop(self, ingestion_id: str) -> None:
        """Stops one run, whose lease has been taken away, and wipes its token."""
        self._tokens.drop(ingestion_id)
        await self._stop(lambda row: row.id == ingestion_id)

    async def _stop(self, which: Callable[[Row], bool]) -> None:
        tasks = [task for row, task in self._runs.values() if which(row)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._settings.poll_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _claim(self) -> None:
        while len(self._runs) < self._settings.runs_max:
            row = await asyncio.to_thread(
                self._store.claim, self.holder, self._now_ms(), self.lease_until_ms, list(self._runs)
            )
            if row is None:
                return
            task = asyncio.create_task(self._work(row))
            self._runs[row.id] = (row, task)
            task.add_done_callback(lambda _done, id_=row.id: self._ended(id_))  # type: ignore[misc]

    def _ended(self, ingestion_id: str) -> None:
        self._runs.pop(ingestion_id, None)
        self._wake.set()

    async def _beat(self) -> None:
        """Extends the leases of what runs here, and of what waits for a token that is here."""
        while True:
            await asyncio.sleep(self._settings.lease_s / 4)
            if self._tokens.sweep_is_due():
                await asyncio.to_thread(overwrite_free_blocks)
            leases = [Lease(row.id, row.fence) for row, _task in self._runs.values()]
            waiting = [id_ for id_ in self._tokens.held() if id_ not in self._runs]
            try:
                lost = await asyncio.to_thread(self._store.extend, leases, self.lease_until_ms)
                await asyncio.to_thread(self._store.keep_tokens, self.holder, waiting, self.lease_until_ms)
            except SealcombError as error:
                _log.warning("leases were not extended", reason=error.reason)
                continue
            for lease in lost:
                self._tokens.drop(lease.ingestion_id)
                running = self._runs.get(lease.ingestion_id)
                if running is not None and running[0].fence == lease.fence:
                    running[1].cancel()

    async def _work(self, row: Row) -> None:
        authority = Authority(self._permits, row.grant_text, row.account, row.grant_id, self._clock)
        _log.info("run begins", account=row.account, job_id=row.id, attempt=row.attempts)
        try:
            values = await self._outcome(row, authority)
        except asyncio.CancelledError:
            values = self._given_back(row)
            await asyncio.shield(asyncio.create_task(self._release(row, values)))
            raise
        except LeaseLost:
            self._tokens.drop(row.id)
            return
        await self._release(row, values)
        _log.info(
            "run ends", account=row.account, job_id=row.id, state=values["state"], reason=values["reason"]
        )
        if values["state"] not in (State.QUEUED.value, State.REMOVING.value) and not values["next_run_ms"]:
            await self._end_permit(row, authority)

    async def _outcome(self, row: Row, authority: Authority) -> dict[str, Any]:
        """Runs it; what its row says afterwards."""
        try:
            if row.attempts > self._settings.starts_max and row.state is not State.REMOVING:
                return self._over(row, State.FAILED, row.reason or "GAVE_UP", None)
            await Run(self._tools, row, authority).execute()
            return await self._done(row, authority)
        except NeedsToken:
            return self._over(row, State.NEEDS_TOKEN, TOKEN_LOST, None)
        except CredentialRefused as error:
            state = State.NEEDS_TOKEN if row.temporary else State.FAILED
            return self._over(row, state, error.reason, None)
        except LeaseLost:
            raise
        except SealcombError as error:
            if error.reason in _STOPPED:
                return self._over(row, State.FAILED, error.reason, None)
            if error.kind in _LATER or row.state is State.REMOVING:
                return self._later(row, error.reason, error.retry_after_s or 0.0)
            return await self._failed(row, authority, error.reason)
        except Exception:  # noqa: BLE001  (the outermost loop of a worker: the others go on)
            _log.exception("run failed", account=row.account, job_id=row.id)
            return self._later(row, "INTERNAL", 0.0)

    async def _done(self, row: Row, authority: Authority) -> dict[str, Any]:
        if row.state is State.REMOVING:
            return self._over(row, State.CANCELLED, "DISCONNECTED", None)
        found = await asyncio.to_thread(self._store.get, row.account, row.id)
        if found is None:
            raise LeaseLost
        counts = found.counts
        state = State.SUCCEEDED
        if counts.failed:
            state = State.PARTIAL if counts.indexed + counts.unchanged + counts.removed else State.FAILED
        reason = "ALL_ITEMS_FAILED" if state is State.FAILED else ""
        return self._over(row, state, reason, await self._next_run_ms(row, authority))

    async def _failed(self, row: Row, authority: Authority, reason: str) -> dict[str, Any]:
        try:
            next_run_ms = await self._next_run_ms(row, authority)
        except SealcombError as error:
            # Rather again than without its schedule.
            return self._later(row, error.reason, error.retry_after_s or 0.0)
        return self._over(row, State.FAILED, reason, next_run_ms)

    async def _next_run_ms(self, row: Row, authority: Authority) -> int | None:
        with acting_as(await authority.caller()):
            scope = Scope(row.account, row.collection_id, row.id)
            payload = await self._tools.seals.open_payload(scope, row.payload)
        if not payload.cron:
            return None
        now_s = self._clock.now_s()
        at = schedule.parse(payload.cron, payload.time_zone, now_s).next_after(now_s)
        return None if at is None else int(at * 1000)

    def _over(self, row: Row, state: State, reason: str, next_run_ms: int | None) -> dict[str, Any]:
        self._tokens.drop(row.id)
        return {
            "state": state.value,
            "reason": reason,
            "next_run_ms": next_run_ms,
            "holder": "",
            "lease_until_ms": 0,
            "attempts": 0,
            "finish_ms": self._now_ms(),
        }

    def _later(self, row: Row, reason: str, retry_after_s: float) -> dict[str, Any]:
        wait_s = max(retry_after_s, min(_BACKOFF_S_MAX, self._settings.backoff_s * 2**row.attempts))
        waits = State.REMOVING if row.state is State.REMOVING else State.QUEUED
        return {
            "state": waits.value,
            "reason": reason,
            "next_run_ms": None,
            "not_before_ms": int((self._clock.now_s() + wait_s) * 1000),
            # Whoever holds a temporary token keeps the ingestion.
            "lease_until_ms": self.lease_until_ms if row.temporary else 0,
        }

    def _given_back(self, row: Row) -> dict[str, Any]:
        """What a stop leaves: the next claim goes on, here or elsewhere."""
        if row.temporary and self._stopping:
            return self._over(row, State.NEEDS_TOKEN, TOKEN_LOST, None)
        return self._later(row, "", 0.0) | {"not_before_ms": self._now_ms()}

    async def _release(self, row: Row, values: dict[str, Any]) -> None:
        try:
            await asyncio.to_thread(self._store.release, Lease(row.id, row.fence), values)
        except SealcombError as error:
            # The lease lapses, and the run begins again.
            _log.warning("a run's end was not recorded", job_id=row.id, reason=error.reason)

    async def _end_permit(self, row: Row, authority: Authority) -> None:
        try:
            with acting_as(await authority.caller()):
                await self._permits.end_permit(row.grant_id)
        except SealcombError as error:
            _log.info("a grant was not ended", job_id=row.id, reason=error.reason)

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)
