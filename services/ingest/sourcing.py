"""Everything between a source and a collection, put together: egress, connections, ingestions, the worker.

Wiring alone: what each part does is said where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.clock import Clock
from services.common.datakeys import DataKeys
from services.ingest.config import IngestSettings
from services.ingest.connections.catalogue import Catalogue, read_clients
from services.ingest.connections.credentials import Credentials, TokenHolders, Vault
from services.ingest.connections.oauth import OAuth
from services.ingest.connections.redirects import Redirects
from services.ingest.connections.service import Connections
from services.ingest.connections.store import ConnectionStore
from services.ingest.egress.client import Egress
from services.ingest.ingestions.authority import Permits
from services.ingest.ingestions.fetching import DocumentPipeline, Passages, Steps
from services.ingest.ingestions.items import ItemStore
from services.ingest.ingestions.run import Limits, Tools
from services.ingest.ingestions.seals import Seals
from services.ingest.ingestions.service import CollectionCheck, Collections, Ingestions
from services.ingest.ingestions.store import IngestionStore
from services.ingest.ingestions.views import Views
from services.ingest.ingestions.worker import Worker, WorkerSettings
from services.ingest.originals import Originals
from services.ingest.sources.contract import SourceType
from services.ingest.store import Database

_DRAIN_S = 20.0


class Keyvault(Permits, Protocol):
    """Keyvault as connections and ingestions need it."""

    async def destroy_resource(self, resource: str) -> None:
        """Destroys all data keys of a resource, for good."""


class Vectorstore(Passages, Collections, Protocol):
    """Vectorstore as ingestions need it."""


@dataclass(frozen=True, slots=True)
class Around:
    """What the rest of the service gives."""

    settings: IngestSettings
    database: Database
    keys: DataKeys
    originals: Originals
    keyvault: Keyvault
    vectorstore: Vectorstore
    pipeline: DocumentPipeline
    check_collection: CollectionCheck
    clock: Clock


class Sourcing:
    """The parts, and the life of the worker."""

    def __init__(self, around: Around, types: Iterable[SourceType[Any]], egress: Egress) -> None:
        settings, clock = around.settings, around.clock
        self.egress = egress
        self.catalogue = Catalogue(types, read_clients(settings.oauth_clients_file))
        uris = filter(None, (uri.strip() for uri in settings.oauth_redirect_uris.split(",")))
        vault, oauth = Vault(around.keys), OAuth(egress, clock)
        self._connection_store = ConnectionStore(around.database)
        full_every_ms = settings.ingestion_full_listing_s * 1000
        store = IngestionStore(around.database, full_every_ms)
        items = ItemStore(around.database)
        seals, tokens = Seals(around.keys), TokenHolders()
        self.credentials = Credentials(self._connection_store, vault, oauth, clock)
        steps = Steps(
            items=items,
            seals=seals,
            originals=around.originals,
            passages=around.vectorstore,
            pipeline=around.pipeline,
            clock=clock,
            document_bytes_max=settings.document_bytes_max,
        )
        limits = Limits(items_max=settings.ingestion_items_max)
        tools = Tools(items, seals, steps, self.catalogue, self.credentials, tokens, egress, clock, limits)
        self.worker = Worker(
            store=store,
            tools=tools,
            permits=around.keyvault,
            tokens=tokens,
            clock=clock,
            settings=WorkerSettings(
                runs_max=settings.ingestion_runs,
                lease_s=settings.ingestion_lease_s,
                poll_s=min(1.0, settings.ingestion_lease_s / 4),
            ),
        )
        self.views = Views(store, items, seals, clock)
        self.ingestions = Ingestions(
            store=store,
            items=items,
            views=self.views,
            seals=seals,
            catalogue=self.catalogue,
            collections=around.vectorstore,
            check_collection=around.check_collection,
            permits=around.keyvault,
            tokens=tokens,
            worker=self.worker,
            clock=clock,
        )
        self.connections = Connections(
            catalogue=self.catalogue,
            redirects=Redirects(uris),
            store=self._connection_store,
            vault=vault,
            oauth=oauth,
            keys=around.keyvault,
            jobs=self.ingestions,
            clock=clock,
        )
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to work."""
        self._work = asyncio.create_task(self.worker.run())

    async def keys_gone(self, account: str, resource: str, *, for_good: bool) -> None:
        """Stops what works with keys that are gone."""
        if for_good and not resource:
            await asyncio.to_thread(self._connection_store.remove_account, account)
        await self.ingestions.keys_gone(account, resource, for_good=for_good)

    async def close(self) -> None:
        """Gives the leases back, wipes the tokens, and waits for what was begun at providers."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await self.connections.drain(_DRAIN_S)
        await self.credentials.drain(_DRAIN_S)
        await self.egress.close()
