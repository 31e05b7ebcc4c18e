"""The gateway's process: policy, the token and account services, and Envoy as its child."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import structlog
import uvloop
from prometheus_client import REGISTRY
from pydantic import ValidationError

from sealcomb.internal.v1 import edge_service_pb2_grpc
from sealcomb.v1 import account_service_pb2_grpc, token_service_pb2_grpc
from services.common.clock import Clock, SystemClock
from services.common.context import ContextSigner, ContextVerifier
from services.common.datakeys import DataKeys
from services.common.methods import GATEWAY, INGEST, KEYVAULT, REFLECTION_METHODS, VECTORSTORE
from services.common.migration import add_migrate_option
from services.common.ops import serving_ops
from services.common.process import forbid_dumps
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import open_channel
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.keyvault import KeyEvent, KeyvaultClient
from services.common.rpc.server import InnerServer
from services.common.telemetry import configure_logging
from services.common.tracing import sending_traces
from services.gateway.accounts import Accounts
from services.gateway.authorizer import Authorizer, UsageLog
from services.gateway.buckets import AddressBuckets, BucketTable, Limits
from services.gateway.changes.feed import ChangeFeed
from services.gateway.config import GatewaySettings
from services.gateway.contexts import ContextMint
from services.gateway.envoy.admin import EnvoyAdmin
from services.gateway.envoy.metrics import EnvoyCollector
from services.gateway.envoy.plan import EdgePlan
from services.gateway.envoy.supervisor import EnvoyRefused, EnvoySupervisor, envoy_binary
from services.gateway.ext_authz import ExtAuthzServer
from services.gateway.failures import Failures
from services.gateway.files import private_folder
from services.gateway.health import HealthPoller
from services.gateway.issuer import TokenIssuer
from services.gateway.operator import ensure_operator_token, replace_operator_token
from services.gateway.portions.selection import shared_buckets
from services.gateway.positions import page_key
from services.gateway.profiles import Profiles
from services.gateway.reflection import (
    add_reflection,
    client_stream_methods,
    public_descriptors,
    server_stream_methods,
)
from services.gateway.replicas import Replicas
from services.gateway.servicers import AccountServicer, EdgeServicer, TokenServicer
from services.gateway.sessions import Defaults, Sessions
from services.gateway.standing import Standing
from services.gateway.store import GatewayStore
from services.gateway.tokens import Pepper
from services.gateway.usage.amounts import day_of
from services.gateway.usage.meter import FLUSH_EVERY_S, Meters
from services.gateway.usage.report import UsageReports

_log = structlog.get_logger("gateway")
_MESSAGE_BYTES_MAX = 1024 * 1024
_USAGE_EVERY_S = 20.0
_SWEEP_EVERY_S = 30.0
_FORGET_EVERY_S = 3600.0
# A database that does not answer keeps the process no longer than this.
_WRITE_DOWN_S = 5.0


def main() -> int:
    """Runs the gateway until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sealcomb-gateway", description=__doc__)
    parser.add_argument(
        "--new-operator-token",
        action="store_true",
        help="end every operator token, write a new one to SEALCOMB_OPERATOR_TOKEN_FILE, and exit",
    )
    add_migrate_option(parser, GATEWAY)
    arguments = parser.parse_args()
    try:
        settings = GatewaySettings()  # type: ignore[call-arg]  # the environment has them
    except ValidationError as error:
        # Where, not what: a value may be a secret that went into the wrong variable.
        places = ", ".join(
            sorted("SEALCOMB_" + "_".join(map(str, one["loc"])).upper() for one in error.errors())
        )
        sys.stderr.write(f"sealcomb-gateway: missing or wrong settings: {places}\n")
        return 2
    configure_logging("gateway", settings.log_level)
    forbid_dumps()
    if arguments.new_operator_token:
        _new_operator_token(settings)
        return 0
    try:
        with sending_traces(GATEWAY, settings.otlp_endpoint, settings.otlp_ca_file, settings.trace_share):
            uvloop.run(serve(settings))
    except EnvoyRefused as error:
        sys.stderr.write(f"sealcomb-gateway: {error}\n")
        return 1
    return 0


async def serve(settings: GatewaySettings, stop: asyncio.Event | None = None) -> None:
    """Everything, from the first file to the last goodbye."""
    stop, hurry = stop or asyncio.Event(), asyncio.Event()
    _stop_on_signals(stop, hurry)
    clock = SystemClock()
    private_folder(settings.run_dir)
    pepper = Pepper.from_file(settings.token_pepper_file)
    signer = ContextSigner.from_file(settings.context_key_file)
    verifier = ContextVerifier.from_folder(GATEWAY, settings.context_trust_dir, clock)

    store = GatewayStore(settings.database_url)
    store.migrate()
    if ensure_operator_token(store, pepper, settings.operator_token_file, clock, os.urandom):
        _log.info("operator token written")

    addresses = {
        KEYVAULT: settings.keyvault_address,
        VECTORSTORE: settings.vectorstore_address,
        INGEST: settings.ingest_address,
    }
    channels = {
        service: open_channel(address, service, settings.tls) for service, address in addresses.items()
    }
    keyvault = KeyvaultClient(channels[KEYVAULT])

    profiles = Profiles(DataKeys(keyvault, clock, settings.data_key_ttl_s))
    meters = Meters(store.usage(), clock)
    defaults = Defaults(
        Limits(settings.calls_per_second, settings.burst), settings.calls_in_flight, settings.token_share
    )
    shared = shared_buckets(settings, clock)
    if shared is not None:
        await shared.beat()
    replicas = Replicas((lambda: shared.replicas) if shared is not None else lambda: 1)
    mint = ContextMint(signer, clock, replicas)
    account_buckets, token_buckets = shared or BucketTable(clock), shared or BucketTable(clock)
    sessions = Sessions(store, profiles, mint, clock, defaults, account_buckets, token_buckets, meters)
    pages = page_key(pepper)
    accounts = Accounts(store, keyvault, profiles, sessions, mint, pepper, pages, clock, os.urandom)
    issuer = TokenIssuer(store, keyvault, profiles, sessions, pepper, pages, clock, os.urandom)
    reports = UsageReports(store, store.usage(), meters, clock)
    address_limits = Limits(
        settings.address_calls_per_second or 10 * settings.calls_per_second,
        settings.address_burst or 10 * settings.burst,
    )
    failure_limits = Limits(settings.failures_per_second, settings.failure_burst)
    callers = AddressBuckets(address_limits, clock, os.urandom(32))
    failures = Failures(AddressBuckets(failure_limits, clock, os.urandom(32)))
    usage = UsageLog()
    authorizer = Authorizer(sessions, pepper, mint, callers, failures, meters, usage, clock)

    guard = GuardInterceptor(GATEWAY, rules_for(GATEWAY), verifier)
    server = InnerServer(settings.listen, settings.tls, guard, message_bytes_max=_MESSAGE_BYTES_MAX)
    account_service_pb2_grpc.add_AccountServiceServicer_to_server(
        AccountServicer(accounts, reports), server.grpc_server
    )
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(TokenServicer(issuer), server.grpc_server)
    edge_service_pb2_grpc.add_EdgeServiceServicer_to_server(
        EdgeServicer(Standing(store, clock), reports), server.grpc_server
    )
    add_reflection(server.grpc_server)
    await server.start()

    async def on_key_event(event: KeyEvent, account: str, _resource: str) -> None:
        if event is KeyEvent.RECONNECTED:
            profiles.drop_all()
            sessions.drop_all()
        elif event not in (KeyEvent.RESOURCE_DESTROYED, KeyEvent.NEW_DATA_KEYS):
            profiles.drop_account(account)
            sessions.drop_account(account)

    feed = ChangeFeed(store.change_log(), sessions, clock)
    await feed.read()
    plan = edge_plan(settings, server.port)
    policy = ExtAuthzServer(authorizer, plan.policy_socket)
    await policy.start()
    envoy = EnvoySupervisor(plan, settings.envoy_workers, envoy_binary())
    admin = EnvoyAdmin(plan.admin_socket)
    poller = HealthPoller(channels, server.set_ready, admin.healthy_replicas, replicas.note)
    health = asyncio.create_task(poller.run())
    background = [
        asyncio.create_task(work)
        for work in (
            keyvault.watch(on_key_event),
            feed.follow(),
            *([shared.run()] if shared else []),
            _every(_SWEEP_EVERY_S, accounts.finish_interrupted),
            _every(_USAGE_EVERY_S, lambda: _write_usage(store, usage)),
            _every(FLUSH_EVERY_S, meters.flush),
            _every(_FORGET_EVERY_S, lambda: _forget_usage(store, clock)),
        )
    ]
    try:
        await envoy.prepare()
        envoy.start()
        REGISTRY.register(EnvoyCollector(admin))
        with serving_ops(settings.metrics_host, settings.metrics_port, lambda: server.is_ready):
            _log.info("gateway started", port=server.port)
            await stop.wait()
            # Balancers learn it first, then the calls in flight end; policy answers to the last of them.
            await _end(health)
            await server.set_ready(False)
            await _pause(settings.stop_notice_s, hurry)
            await envoy.drain(settings.drain_s, hurry, others=settings.stop_notice_s > 0)
    finally:
        await _end(health)
        await envoy.stop()
        await policy.stop()
        await server.stop()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await _write_down(store, usage, meters)
        if shared is not None:
            await shared.close()
        for channel in channels.values():
            await channel.close()
        store.close()
        _log.info("gateway stopped")


def edge_plan(settings: GatewaySettings, policy_port: int) -> EdgePlan:
    """What Envoy's configuration is made of, from the settings."""
    own_host = settings.listen.rsplit(":", 1)[0]
    return EdgePlan(
        listen=settings.edge_listen,
        edge_tls_dir=settings.edge_tls_dir.absolute(),
        inner_tls_dir=settings.tls_dir.absolute(),
        run_dir=settings.run_dir.absolute(),
        addresses={
            GATEWAY: f"{own_host}:{policy_port}",
            KEYVAULT: settings.keyvault_address,
            VECTORSTORE: settings.vectorstore_address,
            INGEST: settings.ingest_address,
        },
        connections_max=settings.edge_connections_max,
        memory_bytes_max=settings.edge_memory_bytes_max,
        message_bytes_max=settings.edge_message_bytes_max,
        client_streams=client_stream_methods() | frozenset(REFLECTION_METHODS),
        server_streams=server_stream_methods(),
        calls_in_flight_max=settings.edge_calls_in_flight_max,
        http_listen=settings.edge_http_listen or None,
        cors_origins=settings.cors_origins,
        descriptors=public_descriptors(),
        log_addresses=settings.access_log_addresses,
        connections_per_second=settings.edge_connections_per_second,
        client_ca_file=settings.edge_client_ca_file and settings.edge_client_ca_file.absolute(),
        client_certificate_required=settings.edge_client_certificate_required,
        proxy_protocol=settings.edge_proxy_protocol,
        trusted_hops=settings.edge_trusted_hops,
    )


def _new_operator_token(settings: GatewaySettings) -> None:
    store = GatewayStore(settings.database_url)
    store.migrate()
    pepper = Pepper.from_file(settings.token_pepper_file)
    replace_operator_token(store, pepper, settings.operator_token_file, SystemClock(), os.urandom)
    store.close()


def _stop_on_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """The first signal ends the process in order, the second at once."""

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


async def _pause(seconds: float, hurry: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(hurry.wait(), seconds)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _every(period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        try:
            await work()
        except Exception:  # noqa: BLE001  (the outermost loop: the next round tries again)
            _log.exception("background work failed")


async def _write_usage(store: GatewayStore, usage: UsageLog) -> None:
    times = usage.take()
    if times:
        await asyncio.to_thread(store.mark_used, times)


async def _write_down(store: GatewayStore, usage: UsageLog, meters: Meters) -> None:
    try:
        async with asyncio.timeout(_WRITE_DOWN_S):
            await _write_usage(store, usage)
            await meters.flush()
    except Exception:  # noqa: BLE001  (the process ends all the same)
        _log.exception("the last usage is lost")


async def _forget_usage(store: GatewayStore, clock: Clock) -> None:
    await asyncio.to_thread(store.usage().forget, day_of(clock.now_s()))


if __name__ == "__main__":
    sys.exit(main())
