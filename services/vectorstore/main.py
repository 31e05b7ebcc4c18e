"""The vectorstore process, from settings to a served port."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys

import structlog
import uvloop
from pydantic import ValidationError

from sealcomb.internal.v1 import passage_service_pb2_grpc
from sealcomb.v1 import collection_service_pb2_grpc, vector_service_pb2_grpc
from services.common import methods
from services.common.clock import Clock, SystemClock
from services.common.context import ContextVerifier
from services.common.errors import SealcombError
from services.common.migration import add_migrate_option
from services.common.objects import claimed, open_store
from services.common.ops import serving_ops
from services.common.process import forbid_dumps, swap_is_on
from services.common.resealing import Resealing
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import connected, open_channel
from services.common.rpc.edge import EdgeClient, UsageReporter
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.keyvault import KeyEvent, KeyvaultClient, OnKeyEvent
from services.common.rpc.server import InnerServer
from services.common.telemetry import configure_logging
from services.common.tracing import sending_traces
from services.vectorstore.config import EmbedderInfo, VectorstoreSettings, read_embedder_info
from services.vectorstore.leases import HeldElsewhere, SharedLeases
from services.vectorstore.node import Limits, Node
from services.vectorstore.quotas import Caps
from services.vectorstore.servicers.collections import Collections
from services.vectorstore.servicers.forwarding import Forwarder
from services.vectorstore.servicers.passages import Passages
from services.vectorstore.servicers.vectors import VectorPoints
from services.vectorstore.usage import CallCounts

_log = structlog.get_logger("vectorstore")
_EVERY_ADDRESS = ("0.0.0.0", "[::]", "")  # noqa: S104
_JOIN_WAIT_S = 1.0
_HAND_OVER_S = 30.0
_REMOVE_S = 30.0


async def serve(settings: VectorstoreSettings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is running."""
    clock = SystemClock()
    stopping = _stop_signals()
    embedder = read_embedder_info(settings.embedder_info) if settings.embedder_info else None
    verifier = ContextVerifier.from_folder(methods.VECTORSTORE, settings.context_trust_dir, clock)
    channel = open_channel(settings.keyvault_address, methods.KEYVAULT, settings.tls)
    keyvault = KeyvaultClient(channel)
    objects = open_store(settings.objects_url)
    node = Node(settings.database_url, objects, keyvault, clock, limits_of(settings))
    watch = asyncio.create_task(keyvault.watch(on_key_event(node), removes=True))

    edge = None
    if settings.gateway_address:
        edge = open_channel(settings.gateway_address, methods.GATEWAY, settings.tls)
    usage = UsageReporter(EdgeClient(edge) if edge else None)
    reporting = asyncio.create_task(usage.run())

    forwarder = forwarder_of(node, settings, clock)
    replicas = forwarder is not None and settings.replica_address is not None
    guard = GuardInterceptor(methods.VECTORSTORE, rules_for(methods.VECTORSTORE, replicas=replicas), verifier)
    guard.count_by(CallCounts(usage).by_method())
    server = InnerServer(
        settings.listen, settings.tls, guard, behind_guard=[forwarder] if forwarder is not None else []
    )
    register(server, node, embedder, forwarder)
    try:
        await server.start()
        await tell_writability(server, node)
        with serving_ops(settings.metrics_host, settings.metrics_port, lambda: server.is_ready):
            await connected(channel, unless=stopping)
            await claimed(objects, node.database_id, unless=stopping)
            await join_replicas(node, settings, server.port, stopping)
            await remove_abandoned(node)
            await server.set_ready(True)
            _log.info("serving", port=server.port)

            resealing = asyncio.create_task(
                Resealing(methods.VECTORSTORE, keyvault, node.reseal, clock).run()
            )
            await stopping.wait()
            resealing.cancel()
            _log.info("stopping")
            # Said before anything is given away, so that new calls go elsewhere.
            await server.set_ready(False)
            await asyncio.sleep(settings.stop_notice_s)
            await hand_over(node)
            await server.stop()
        await usage.report_last()
    finally:
        watch.cancel()
        reporting.cancel()
        if edge:
            await edge.close()
        if forwarder is not None:
            await forwarder.close()
        await node.close()
        await channel.close()


def forwarder_of(node: Node, settings: VectorstoreSettings, clock: Clock) -> Forwarder | None:
    """What passes calls on to other replicas; None where there can be none."""
    if not isinstance(node.leases, SharedLeases):
        return None
    return Forwarder(
        node.leases,
        node.catalog,
        lambda address: open_channel(address, methods.VECTORSTORE, settings.tls),
        clock,
    )


async def join_replicas(node: Node, settings: VectorstoreSettings, port: int, unless: asyncio.Event) -> None:
    """Joins the other replicas, trying until the database answers."""
    if not isinstance(node.leases, SharedLeases):
        return
    host = settings.listen.rpartition(":")[0]
    host = socket.gethostname() if host in _EVERY_ADDRESS else host
    address = settings.replica_address or f"{host}:{port}"
    while not unless.is_set():
        try:
            await node.leases.start(address)
            return
        except SealcombError as error:
            _log.warning("waiting for the database", reason=error.reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(unless.wait(), _JOIN_WAIT_S)


async def remove_abandoned(node: Node) -> None:
    """Removes what earlier processes left of imports; what cannot be removed now is at the next start."""
    try:
        await asyncio.wait_for(node.remove_abandoned(), _REMOVE_S)
    except (SealcombError, TimeoutError) as error:
        _log.warning("what broken imports left is not all removed", exception_type=type(error).__name__)


async def hand_over(node: Node) -> None:
    """Gives what is held to other replicas; what cannot be given is free once the process has ended."""
    try:
        await asyncio.wait_for(node.hand_over(), _HAND_OVER_S)
    except (SealcombError, TimeoutError) as error:
        _log.warning("not everything was handed over", exception_type=type(error).__name__)


async def tell_writability(server: InnerServer, node: Node) -> None:
    """Lets health say, for the part `writes`, whether the storage takes them; the whole serves either way."""
    loop = asyncio.get_running_loop()
    telling: set[asyncio.Task[None]] = set()

    def tell(takes: bool) -> None:
        task = loop.create_task(server.set_part("writes", takes))
        telling.add(task)
        task.add_done_callback(telling.discard)

    node.writability.on_change = lambda takes: loop.call_soon_threadsafe(tell, takes)  # type: ignore[assignment]
    await server.set_part("writes", True)


def register(
    server: InnerServer, node: Node, embedder: EmbedderInfo | None, forwarder: Forwarder | None = None
) -> None:
    """Puts the vectorstore's services on a server."""
    collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(
        Collections(
            node.catalog, node.keys, node.residency, node.purge, node.resealer, node.importer, embedder
        ),
        server.grpc_server,
    )
    vector_service_pb2_grpc.add_VectorServiceServicer_to_server(
        VectorPoints(node.catalog, node.residency, node.finder, forwarder), server.grpc_server
    )
    passage_service_pb2_grpc.add_PassageServiceServicer_to_server(
        Passages(node.catalog, node.residency, node.finder, node.workers), server.grpc_server
    )


def on_key_event(node: Node) -> OnKeyEvent:
    """What a key event does to what is open."""

    async def act(event: KeyEvent, account: str, resource: str) -> None:
        match event:
            case KeyEvent.DISABLED | KeyEvent.SUSPENDED:
                await node.lock_account(account)
            case KeyEvent.RESOURCE_DESTROYED:
                # The holder is told as well, and removes it.
                with contextlib.suppress(HeldElsewhere):
                    await node.purge(account, resource)
            case KeyEvent.ACCOUNT_DESTROYED:
                await node.purge_account(account)
            case KeyEvent.RECONNECTED:
                # Events may have been missed.
                await node.lock_all()
            case KeyEvent.NEW_DATA_KEYS:
                node.keys.drop_account(account)
            case KeyEvent.ENABLED | KeyEvent.RESUMED:
                pass

    return act


def limits_of(settings: VectorstoreSettings) -> Limits:
    """The limits that the settings give."""
    return Limits(
        resident_bytes_max=settings.resident_bytes_max,
        caps=Caps(
            settings.collection_points_max,
            settings.collection_bytes_max,
            settings.account_points_max,
            settings.account_bytes_max,
        ),
        collections_per_account_max=settings.collections_per_account_max,
        snapshot_log_bytes=settings.snapshot_log_bytes,
        erase_after_s=settings.erase_after_s,
        key_ttl_s=settings.data_key_ttl_s,
        lease_s=settings.lease_s,
    )


def _stop_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def main() -> None:
    """Entry point of `sealcomb-vectorstore`."""
    parser = argparse.ArgumentParser(
        prog="sealcomb-vectorstore",
        description="Keeps and searches collections of points and passages. Settings come from the "
        "environment (SEALCOMB_LISTEN, SEALCOMB_TLS_DIR, SEALCOMB_CONTEXT_TRUST_DIR, SEALCOMB_DATABASE_URL, "
        "SEALCOMB_KEYVAULT_ADDRESS, SEALCOMB_OBJECTS_URL, SEALCOMB_EMBEDDER_INFO and more); "
        "see docs/vectorstore.md.",
    )
    add_migrate_option(parser, methods.VECTORSTORE)
    parser.parse_args()
    try:
        forbid_dumps()
        settings = VectorstoreSettings()  # type: ignore[call-arg]  # from the environment
        configure_logging(methods.VECTORSTORE, settings.log_level)
        if swap_is_on():
            _log.warning("swap is on: memory that holds keys may reach a disk; turn swap off or encrypt it")
        traces = sending_traces(
            methods.VECTORSTORE, settings.otlp_endpoint, settings.otlp_ca_file, settings.trace_share
        )
        with traces, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except ValidationError as error:
        # Without the values: a setting may be a URL with a password.
        fields = ", ".join("SEALCOMB_" + str(problem["loc"][0]).upper() for problem in error.errors())
        sys.exit(f"sealcomb-vectorstore: settings missing or wrong: {fields}")
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"sealcomb-vectorstore: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
