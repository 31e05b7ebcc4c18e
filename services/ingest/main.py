"""`sealcomb-ingest`: takes documents in, gives them back, and searches them.

It holds data keys and plaintext in memory, so it allows no dumps; it parses nothing itself. Reads
top to bottom: settings, store, objects, model, extraction, peers, services, server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import structlog
import uvloop
from pydantic import ValidationError

from sealcomb.v1 import (
    document_service_pb2_grpc,
    ingestion_service_pb2_grpc,
    search_service_pb2_grpc,
    source_service_pb2_grpc,
)
from services.common import methods
from services.common.clock import SystemClock
from services.common.context import ContextVerifier
from services.common.datakeys import DataKeys
from services.common.errors import SealcombError
from services.common.migration import add_migrate_option
from services.common.objects import claimed, open_store
from services.common.ops import serving_ops
from services.common.process import forbid_dumps, swap_is_on
from services.common.resealing import Resealing
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import connected, open_channel
from services.common.rpc.edge import EdgeClient
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.keyvault import KeyvaultClient
from services.common.rpc.open_streams import OpenStreams
from services.common.rpc.server import InnerServer
from services.common.telemetry import configure_logging
from services.common.tracing import sending_traces
from services.ingest.budget import UploadBudget
from services.ingest.config import IngestSettings
from services.ingest.documents import Documents
from services.ingest.egress.client import Egress
from services.ingest.embed import Embedder, open_embedder
from services.ingest.embedders.pool import EmbeddingPool
from services.ingest.extract.process import ExtractionLimits, Extractor
from services.ingest.originals import Originals
from services.ingest.peers import VectorstoreClient
from services.ingest.pipeline import Pipeline
from services.ingest.rerank import Reranker, open_scorer
from services.ingest.resealing import Resealer
from services.ingest.search import EmbedderIdentity, Search
from services.ingest.servicers.documents import DocumentServicer
from services.ingest.servicers.events import KeyEvents
from services.ingest.servicers.ingestions import IngestionServicer
from services.ingest.servicers.pages import Pages
from services.ingest.servicers.search import SearchServicer
from services.ingest.servicers.sources import SourceServicer
from services.ingest.sources import registry
from services.ingest.sources.contract import SourceType
from services.ingest.sourcing import Around, Sourcing
from services.ingest.store import Store
from services.ingest.uploads import UploadLimits, Uploads

# A chunk has at most 1 MiB and a batch of searches less; the rest is room for headers.
_RECEIVED_BYTES_MAX = 4 * 1024 * 1024
_DRAIN_S = 10.0
_ENDPOINT_BATCH_TEXTS = 32

_log = structlog.get_logger("ingest")


async def serve(
    settings: IngestSettings,
    embedder: Embedder,
    stopping: asyncio.Event,
    ready: Callable[[int], None],
    source_types: Iterable[SourceType[Any]] = (),
) -> None:
    """Runs the service until it is told to stop; `ready` is called with its port. Closes the embedder."""
    clock = SystemClock()
    verifier = ContextVerifier.from_folder(methods.INGEST, settings.context_trust_dir, clock)
    store = Store.open(settings.database_url)
    objects = open_store(settings.objects_url)
    workers = settings.embedder_workers or len(os.sched_getaffinity(0))
    local = settings.embedder.startswith("onnx:")
    pool = EmbeddingPool(embedder, workers=workers, unit_texts=1 if local else _ENDPOINT_BATCH_TEXTS)
    extractor = Extractor(
        ExtractionLimits(
            settings.extract_memory_bytes_max, settings.extract_cpu_s_max, settings.extract_wall_s_max
        ),
        workers=settings.extract_workers,
    )
    pipeline = Pipeline(extractor, embedder, pool)
    reranker = Reranker(open_scorer(settings.reranker))
    keyvault_channel = open_channel(settings.keyvault_address, methods.KEYVAULT, settings.tls)
    vectorstore_channel = open_channel(settings.vectorstore_address, methods.VECTORSTORE, settings.tls)
    edge_channel = None
    if settings.gateway_address:
        edge_channel = open_channel(settings.gateway_address, methods.GATEWAY, settings.tls)
    try:
        await extractor.start()
        keyvault = KeyvaultClient(keyvault_channel)
        vectorstore = VectorstoreClient(vectorstore_channel)
        keys = DataKeys(keyvault, clock, settings.data_key_ttl_s)
        originals = Originals(objects, keys, store, clock)
        if await claimed(objects, store.database_id, unless=stopping):
            await originals.resume_removals()
        identity = EmbedderIdentity(embedder.fingerprint, embedder.dimension)
        search = Search(vectorstore, pool, identity, reranker, clock)
        uploads = Uploads(
            passages=vectorstore,
            permits=keyvault,
            pipeline=pipeline,
            originals=originals,
            budget=UploadBudget(
                settings.upload_bytes_in_flight_max, settings.upload_bytes_in_flight_account_max
            ),
            check_collection=identity.check,
            clock=clock,
            limits=UploadLimits(
                settings.document_bytes_max, settings.upload_idle_s_max, settings.upload_s_max
            ),
        )
        egress = Egress.open(settings.egress_allow, settings.egress_ca_file)
        around = Around(
            settings=settings,
            database=store.database,
            keys=keys,
            originals=originals,
            keyvault=keyvault,
            vectorstore=vectorstore,
            pipeline=pipeline,
            check_collection=identity.check,
            clock=clock,
        )
        sourcing = Sourcing(around, source_types, egress)
        guard = GuardInterceptor(methods.INGEST, rules_for(methods.INGEST), verifier)
        streams = OpenStreams(clock, EdgeClient(edge_channel).ended_tokens if edge_channel else None)
        guard.watch_streams(streams)
        server = InnerServer(settings.listen, settings.tls, guard, received_bytes_max=_RECEIVED_BYTES_MAX)
        resealer = Resealer(vectorstore, originals, keys, store, keyvault, clock)
        pages = Pages(keys)
        document_service_pb2_grpc.add_DocumentServiceServicer_to_server(
            DocumentServicer(uploads, Documents(vectorstore, originals), resealer, pages), server.grpc_server
        )
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(
            SearchServicer(search), server.grpc_server
        )
        register_sourcing(server, sourcing, pages)
        on_key_event = KeyEvents(keys, originals, search, sourcing)
        watch = asyncio.create_task(keyvault.watch(on_key_event, removes=True))
        looking = asyncio.create_task(streams.run())
        sourcing.start()
        await server.start()
        with serving_ops(settings.metrics_host, settings.metrics_port, lambda: server.is_ready):
            await connected(keyvault_channel, vectorstore_channel, unless=stopping)
            await server.set_ready(True)
            _log.info("serving", port=server.port)
            ready(server.port)

            resealing = asyncio.create_task(Resealing(methods.INGEST, keyvault, resealer.all, clock).run())
            await stopping.wait()
            resealing.cancel()
            _log.info("stopping")
            await server.stop(notice_s=settings.stop_notice_s)
            await sourcing.close()
            await uploads.drain(_DRAIN_S)
        await originals.settle()
        watch.cancel()
        looking.cancel()
    finally:
        await extractor.close()
        await pool.close()
        pipeline.close()
        reranker.close()
        embedder.close()
        for channel in (keyvault_channel, vectorstore_channel, edge_channel):
            if channel is not None:
                await channel.close()
        store.close()


def register_sourcing(server: InnerServer, sourcing: Sourcing, pages: Pages) -> None:
    """Adds the services of connections and ingestions."""
    source_service_pb2_grpc.add_SourceServiceServicer_to_server(
        SourceServicer(sourcing.catalogue, sourcing.connections, pages), server.grpc_server
    )
    ingestion_service_pb2_grpc.add_IngestionServiceServicer_to_server(
        IngestionServicer(sourcing.ingestions, sourcing.views, sourcing.connections, pages),
        server.grpc_server,
    )


async def _run(settings: IngestSettings) -> None:
    stopping = _stop_signals()
    embedder = await asyncio.to_thread(
        open_embedder,
        settings.embedder,
        api_key_file=settings.embedder_api_key_file,
        ca_file=settings.embedder_ca_file,
    )
    types = registry.source_types(settings.source_api_urls).values()
    await serve(settings, embedder, stopping, lambda _port: None, types)


def _stop_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def main() -> None:
    """Entry point of `sealcomb-ingest`."""
    parser = argparse.ArgumentParser(
        prog="sealcomb-ingest",
        description="Takes documents in and searches them. Settings come from the environment "
        "(SEALCOMB_LISTEN, SEALCOMB_TLS_DIR, SEALCOMB_CONTEXT_TRUST_DIR, SEALCOMB_DATABASE_URL, "
        "SEALCOMB_KEYVAULT_ADDRESS, SEALCOMB_VECTORSTORE_ADDRESS, SEALCOMB_OBJECTS_URL, SEALCOMB_EMBEDDER); "
        "see docs/ingest.md.",
    )
    add_migrate_option(parser, methods.INGEST)
    parser.parse_args()
    try:
        forbid_dumps()
        settings = IngestSettings()  # type: ignore[call-arg]  # from the environment
        configure_logging(methods.INGEST, settings.log_level)
        if swap_is_on():
            _log.warning("swap is on: memory that holds keys may reach a disk; turn swap off or encrypt it")
        traces = sending_traces(
            methods.INGEST, settings.otlp_endpoint, settings.otlp_ca_file, settings.trace_share
        )
        with traces, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings))
    except ValidationError as error:
        # Without the values: a setting may be a URL with a password.
        fields = ", ".join("SEALCOMB_" + str(problem["loc"][0]).upper() for problem in error.errors())
        sys.exit(f"sealcomb-ingest: settings missing or wrong: {fields}")
    except (SealcombError, ValueError) as error:
        sys.exit(f"sealcomb-ingest: {error}")


if __name__ == "__main__":
    main()
