"""Ingestions as callers act on them: begun, stopped, tried again, resumed.

A temporary token goes straight into its holder and from there to the source; no row, answer or log has a
place for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.common import ids
from services.common.clock import Clock
from services.common.context import current_account, current_caller
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    PermissionDenied,
    SealcombError,
    invalid,
)
from services.ingest.connections.catalogue import Catalogue
from services.ingest.connections.credentials import TemporaryToken, TokenHolders
from services.ingest.connections.records import Connection, ConnectionState
from services.ingest.ingestions import schedule
from services.ingest.ingestions.authority import Permits
from services.ingest.ingestions.items import ItemStore
from services.ingest.ingestions.records import (
    LIVE,
    Counts,
    Ingestion,
    Payload,
    Row,
    State,
)
from services.ingest.ingestions.seals import Scope, Seals, idempotency_tag
from services.ingest.ingestions.store import IngestionStore
from services.ingest.ingestions.views import Views
from services.ingest.ingestions.worker import TOKEN_LOST, Worker
from services.ingest.records import CollectionInfo
from services.ingest.sources.contract import SourceSettings

_SETTLE_MS = 1_200_000


class Collections(Protocol):
    """What ingestions need of vectorstore."""

    async def resolve(self, collection: str) -> CollectionInfo:
        """A collection by name. Raises NotFound."""


class CollectionCheck(Protocol):
    """Whether a collection's vectors are this service's embedder's."""

    def __call__(self, collection: CollectionInfo) -> None:
        """Raises FailedPrecondition if they are not."""


class ConnectionSource(Protocol):
    """Where connections are found."""

    async def get(self, connection_id: str) -> Connection:
        """One connection. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants to be brought in."""

    collection: str = field(repr=False)
    connection_id: str = ""
    token: TemporaryToken | None = None
    kind: str = ""
    # None: those of the connection.
    settings: Mapping[str, Any] | None = field(default=None, repr=False)
    cron: str = ""
    time_zone: str = ""
    idempotency_key: str = field(default="", repr=False)


class Ingestions:
    """Acts on ingestions within the account of the call in progress."""

    def __init__(
        self,
        *,
        store: IngestionStore,
        items: ItemStore,
        views: Views,
        seals: Seals,
        catalogue: Catalogue,
        collections: Collections,
        check_collection: CollectionCheck,
        permits: Permits,
        tokens: TokenHolders,
        worker: Worker,
        clock: Clock,
    ) -> None:
        self._store = store
        self._items = items
        self._views = views
        self._seals = seals
        self._catalogue = catalogue
        self._collections = collections
        self._check_collection = check_collection
        self._permits = permits
        self._tokens = tokens
        self._worker = worker
        self._clock = clock

    async def create(self, wish: Wish, connections: ConnectionSource) -> Ingestion:
        """Begins an ingestion; one that was begun under the same idempotency key is returned as it is."""
        made = None
        try:
            made = await self._create(wish, connections)
            return made
        finally:
            # Unless it is held for this very ingestion.
            if wish.token is not None and (made is None or self._tokens.get(made.row.id) is not wish.token):
                self._tokens.wipe(wish.token)

    async def _create(self, wish: Wish, connections: ConnectionSource) -> Ingestion:
        _need_write()
        payload = await self._payload(wish, connections)
        collection = await self._collections.resolve(wish.collection)
        self._check_collection(collection)
        earlier = await self._earlier(collection.id, wish.idempotency_key)
        if earlier is not None:
            return earlier
        row = await self._new_row(collection.id, wish, payload)
        if wish.token is not None:
            # Before the row: whoever claims it finds the token here.
            self._tokens.put(row.id, wish.token)
        try:
            await asyncio.to_thread(self._store.add, row)
        except SealcombError as error:
            self._tokens.drop(row.id)
            await self._permits.end_permit(row.grant_id)
            found = await self._earlier(collection.id, wish.idempotency_key)
            if isinstance(error, AlreadyExists) and found is not None:
                return found
            raise
        self._worker.wake()
        return Ingestion(row, payload)

    async def cancel(self, id_: str) -> Ingestion:
        """Stops an ingestion for good. One that has ended stays as it is."""
        _need_write()
        ingestion = await self._views.get(id_)
        await self._cancel(ingestion.row, "CANCELLED")
        return await self._views.get(id_)

    async def retry(self, id_: str, connections: ConnectionSource) -> Ingestion:
        """Tries what failed once more. Raises FailedPrecondition while it has not failed."""
        _need_write()
        ingestion = await self._views.get(id_)
        row = ingestion.row
        states = frozenset({State.PARTIAL, State.FAILED})
        if row.state not in states:
            raise FailedPrecondition("nothing of it has failed", reason="INGESTION_NOT_FAILED")
        values: dict[str, Any] = {"state": State.NEEDS_TOKEN, "reason": TOKEN_LOST}
        if not row.temporary:
            await self._usable(row.connection_id, connections)
            values = {"state": State.QUEUED, "reason": "", "not_before_ms": self._now_ms()}
            values |= await self._fresh_grant(row)
        if not await asyncio.to_thread(self._store.retry, row, states, values, self._now_ms()):
            raise Aborted("the ingestion has just changed; look at it again")
        self._worker.wake()
        return await self._views.get(id_)

    async def resume(self, id_: str, token: TemporaryToken) -> Ingestion:
        """Goes on where it was, with a new token. Raises FailedPrecondition unless it waits for one."""
        try:
            return await self._resume(id_, token)
        finally:
            if self._tokens.get(id_) is not token:
                self._tokens.wipe(token)

    async def _resume(self, id_: str, token: TemporaryToken) -> Ingestion:
        _need_write()
        ingestion = await self._views.get(id_)
        row, states = ingestion.row, frozenset({State.NEEDS_TOKEN})
        if row.state not in states:
            raise FailedPrecondition("it does not wait for a token", reason="INGESTION_NOT_WAITING")
        values = await self._fresh_grant(row)
        values |= {"state": State.QUEUED, "reason": "", "attempts": 0, "not_before_ms": self._now_ms()}
        values |= {"holder": self._worker.holder, "lease_until_ms": self._worker.lease_until_ms}
        self._tokens.put(row.id, token)
        if not await asyncio.to_thread(self._store.change, row, states, values):
            self._tokens.drop(row.id)
            raise Aborted("the ingestion has just changed; look at it again")
        self._worker.wake()
        return await self._views.get(id_)

    async def disconnect(self, connection_id: str, *, delete_documents: bool) -> tuple[int, int]:
        """Ends the ingestions of a connection; how many ran, and how many documents are being deleted."""
        account = current_account()
        rows = await asyncio.to_thread(self._store.of_connection, account, connection_id)
        running = [row for row in rows if row.state in LIVE or row.next_run_ms is not None]
        documents = await asyncio.to_thread(self._items.count_documents, [row.id for row in rows])
        for row in rows:
            if delete_documents and row.state is not State.REMOVING:
                await self._begin_removal(row)
            else:
                await self._cancel(row, "DISCONNECTED")
        self._worker.wake()
        return len(running), documents if delete_documents else 0

    async def keys_gone(self, account: str, resource: str, *, for_good: bool) -> None:
        """Stops what works with keys that are gone; what they sealed is forgotten if they are so for good."""
        self._views.keys_dropped(account)
        if for_good and not resource:
            await asyncio.to_thread(self._store.remove_account, account)
        elif for_good:
            for id_ in await asyncio.to_thread(self._store.remove_collection, account, resource):
                self._tokens.drop(id_)
        await self._worker.halt(account, resource if for_good else "")

    async def _payload(self, wish: Wish, connections: ConnectionSource) -> Payload:
        if wish.cron:
            schedule.parse(wish.cron, wish.time_zone, self._clock.now_s())
        if wish.token is not None:
            if wish.cron:
                raise invalid("schedule", "is not possible with a temporary token; make a connection")
            if not self._catalogue.type_of(wish.kind).token_form:
                raise invalid("temporary_token", "is not for this source, which takes none")
            settings = self._catalogue.settings_of(wish.kind, wish.settings or {})
            return Payload(wish.collection, wish.kind, settings.model_dump(mode="json"))
        described = (await self._usable(wish.connection_id, connections)).description
        if wish.kind not in ("", described.kind):
            raise invalid("kind", "is not that of the connection")
        wanted = described.settings if wish.settings is None else wish.settings
        settings = self._catalogue.settings_of(described.kind, wanted)
        if not self._catalogue.type_of(described.kind).token_form:
            return self._described(wish, described.kind, settings)
        # A credential is for the hosts that it was given for.
        allowed = self._catalogue.hosts_of(
            described.kind, self._catalogue.settings_of(described.kind, described.settings)
        )
        if not self._catalogue.hosts_of(described.kind, settings) <= allowed:
            raise invalid("settings", "name another host than the connection's", reason="HOST_NOT_CONNECTED")
        return self._described(wish, described.kind, settings)

    def _described(self, wish: Wish, kind: str, settings: SourceSettings) -> Payload:
        return Payload(wish.collection, kind, settings.model_dump(mode="json"), wish.cron, wish.time_zone)

    async def _usable(self, connection_id: str, connections: ConnectionSource) -> Connection:
        connection = await connections.get(connection_id)
        if connection.state is not ConnectionState.CONNECTED:
            raise FailedPrecondition(
                "the source no longer accepts this connection; connect again", reason="CONNECTION_REFUSED"
            )
        return connection

    async def _new_row(self, collection_id: str, wish: Wish, payload: Payload) -> Row:
        account, id_, grant_id = current_account(), ids.new_id(), ids.new_id()
        tag_key = await self._seals.tag_key(collection_id)
        sealed = await self._seals.seal_payload(Scope(account, collection_id, id_), payload)
        temporary = wish.token is not None
        return Row(
            id=id_,
            account=account,
            collection_id=collection_id,
            connection_id=wish.connection_id,
            create_ms=self._now_ms(),
            state=State.QUEUED,
            reason="",
            grant_id=grant_id,
            grant_text=await self._permits.issue_grant(grant_id, collection_id),
            holder=self._worker.holder if temporary else "",
            lease_until_ms=self._worker.lease_until_ms if temporary else 0,
            fence=0,
            attempts=0,
            not_before_ms=0,
            next_run_ms=None,
            run=1,
            listed=False,
            full_ms=self._now_ms(),
            counts=Counts(),
            start_ms=0,
            finish_ms=0,
            tag_key_id=tag_key.id,
            idempotency_tag=idempotency_tag(tag_key, wish.idempotency_key) if wish.idempotency_key else None,
            payload=sealed,
            cursor=None,
        )

    async def _earlier(self, collection_id: str, idempotency_key: str) -> Ingestion | None:
        if not idempotency_key:
            return None
        account = current_account()
        key_ids = await asyncio.to_thread(self._store.tag_key_ids, account, collection_id)
        keys = [await self._seals.tag_key(collection_id, key_id) for key_id in key_ids]
        tags = [idempotency_tag(key, idempotency_key) for key in keys]
        row = await asyncio.to_thread(self._store.by_idempotency, account, collection_id, tags)
        return None if row is None else Ingestion(row, await self._views.open(row))

    async def _fresh_grant(self, row: Row) -> dict[str, Any]:
        await self._permits.end_permit(row.grant_id)
        grant_id = ids.new_id()
        text = await self._permits.issue_grant(grant_id, row.collection_id)
        return {"grant_id": grant_id, "grant_text": text}

    async def _cancel(self, row: Row, reason: str) -> None:
        live = row.state in LIVE or row.next_run_ms is not None
        if not live:
            return
        values = {"state": State.CANCELLED, "reason": reason, "next_run_ms": None, "holder": ""}
        values |= {"lease_until_ms": 0, "finish_ms": self._now_ms()}
        states = frozenset(State) - {State.REMOVING, State.CANCELLED}
        await asyncio.to_thread(self._store.cancel, row, states, values, self._now_ms() + _SETTLE_MS)
        await self._worker.drop(row.id)
        await self._permits.end_permit(row.grant_id)

    async def _begin_removal(self, row: Row) -> None:
        values = await self._fresh_grant(row)
        values |= {"reason": "DISCONNECTED", "next_run_ms": None, "lease_until_ms": 0, "not_before_ms": 0}
        await asyncio.to_thread(self._store.begin_removal, row, values)
        await self._worker.drop(row.id)

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


def _need_write() -> None:
    """Bringing documents in takes both: what opens sources, and what writes. Raises PermissionDenied."""
    if "write" not in current_caller().context.scopes:
        raise PermissionDenied("the token lacks the scope write; use one that has it", reason="SCOPE_MISSING")
