"""The keyvault process, from settings to a served port."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import uvloop
from pydantic import ValidationError

from sealcomb.internal.v1 import keyvault_service_pb2_grpc
from sealcomb.v1 import audit_service_pb2_grpc, key_service_pb2_grpc
from services.common import methods
from services.common.alarms import Alarms
from services.common.clock import Clock, SystemClock
from services.common.context import CallContext, ContextSigner, ContextVerifier
from services.common.errors import FailedPrecondition, SealcombError, Unavailable
from services.common.migration import add_migrate_option
from services.common.ops import serving_ops
from services.common.process import check_randomness, forbid_dumps, lock_memory, swap_is_on
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.sealing import DataKey
from services.common.telemetry import configure_logging
from services.common.tracing import sending_traces
from services.keyvault.asker import Asker
from services.keyvault.backup import back_up, restore
from services.keyvault.chain import AuditChain
from services.keyvault.checkpoints import Checkpoints
from services.keyvault.completion import Completion
from services.keyvault.config import KeyvaultSettings
from services.keyvault.deletions import Deletions
from services.keyvault.events import KeyEvents
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.kms.rootkey import create_root_key
from services.keyvault.kms.selection import open_kms
from services.keyvault.ledger import Ledger, LedgerFailed
from services.keyvault.moves import Moves
from services.keyvault.permits import Permits
from services.keyvault.public_servicers import AuditServicer, KeyServicer
from services.keyvault.receipts import Receipts
from services.keyvault.reconciliation import Reconciliation
from services.keyvault.release_gate import ReleaseGate
from services.keyvault.release_servicer import KeyReleaseServicer
from services.keyvault.releases import Releases
from services.keyvault.resealing import Resealing
from services.keyvault.reseals import Reseals
from services.keyvault.retirement import Retirements
from services.keyvault.statements import StatementSigner
from services.keyvault.store import Store
from services.keyvault.vault import INSTALLATION, Vault

_log = structlog.get_logger("keyvault")
# Requests here are ids and flags; nothing is large.
_MESSAGE_BYTES_MAX = 1024 * 1024
_KMS_WAIT_S = 0.25
_KMS_WAIT_S_MAX = 5.0


async def serve(settings: KeyvaultSettings, *, accept_older: bool = False) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is running."""
    clock = SystemClock()
    stopping = _stop_signals()
    kms = open_kms(settings, clock)
    signer = ContextSigner.from_file(settings.context_key_file)
    verifier = ContextVerifier.from_folder(methods.KEYVAULT, settings.context_trust_dir, clock)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(kms.close)
        store = Store.open(settings.database_url)
        stack.callback(store.close)
        events = KeyEvents()
        completion = Completion()
        vault = Vault(store, kms, events, clock, completion)
        releases = Releases(store, kms, events, clock, completion)
        alarms = Alarms(methods.KEYVAULT, clock)
        gate = ReleaseGate(releases, clock, settings.releases_per_second, alarms)
        grants = ContextVerifier.of_grants(settings.context_trust_dir, clock)
        permits = Permits(store, signer, grants, clock)
        await vault.bind_installation()
        chain = AuditChain(store)
        statements = StatementSigner.from_file(settings.context_key_file)
        await stack.enter_async_context(_ledger_kept(settings, store, statements, clock, accept_older))
        receipts = Receipts(store, statements)
        checkpoints = Checkpoints(store, chain, statements, clock)
        deletions = Deletions(store, vault, events, clock, completion)
        moves = Moves(store, kms, clock)
        resealing = Resealing(store, events, clock, completion, settings.aged_key_s)

        guard = GuardInterceptor(methods.KEYVAULT, rules_for(methods.KEYVAULT), verifier)
        server = InnerServer(settings.listen, settings.tls, guard, message_bytes_max=_MESSAGE_BYTES_MAX)
        keyvault_service_pb2_grpc.add_KeyReleaseServiceServicer_to_server(
            KeyReleaseServicer(
                vault, gate, releases, permits, events, receipts, resealing, Reseals(store, signer, clock)
            ),
            server.grpc_server,
        )
        key_service_pb2_grpc.add_KeyServiceServicer_to_server(
            KeyServicer(vault, moves, deletions, receipts, resealing), server.grpc_server
        )
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditServicer(chain, checkpoints), server.grpc_server
        )
        await server.start()
        with serving_ops(settings.metrics_host, settings.metrics_port, lambda: server.is_ready):
            if await _kms_ready(vault, releases, kms, chain, stopping):
                await server.set_ready(True)
                _log.info("serving", port=server.port, provider=kms.provider)
                works = (deletions.run(), moves.run(), Retirements(store, kms).run())
                running = [asyncio.create_task(work) for work in works]
                await stopping.wait()
                for task in running:
                    task.cancel()
            _log.info("stopping")
            # Watches would otherwise hold the server until its grace ends.
            events.close()
            await server.stop(notice_s=settings.stop_notice_s)
            await moves.close()
        await completion.drain()


@contextlib.asynccontextmanager
async def _ledger_kept(
    settings: KeyvaultSettings, store: Store, signer: StatementSigner, clock: Clock, accept_older: bool
) -> AsyncIterator[None]:
    """Brings database and ledger together, and keeps them so for the block."""
    if settings.ledger is None:
        _log.warning("there is no ledger; an old copy of the database brings back what was deleted since")
        yield
        return
    ledger = Ledger(settings.ledger, signer)
    try:
        reconciliation = Reconciliation(store, ledger, clock)
        await reconciliation.at_start(accept_older=accept_older)
        store.keep_ledger(ledger)
        marking = asyncio.create_task(reconciliation.run())
        try:
            yield
        finally:
            marking.cancel()
        await reconciliation.advance()
    finally:
        ledger.close()


async def _kms_ready(
    vault: Vault, releases: Releases, kms: KmsRegistry, chain: AuditChain, stopping: asyncio.Event
) -> bool:
    """Waits until the KMS gives keyvault its own keys, trying again and again; False where it is to stop.

    Until then health says NOT_SERVING, and the log says why.
    """
    waits_s = _KMS_WAIT_S
    while not stopping.is_set():
        try:
            chain.page_key = await _own_key(vault, releases, "pages")
            kms.seal_handles_with(await _own_key(vault, releases, "handles"))
            return True
        except (Unavailable, FailedPrecondition) as error:
            _log.warning("waiting for the KMS", provider=kms.provider, reason=error.reason, why=error.message)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), waits_s)
        waits_s = min(2 * waits_s, _KMS_WAIT_S_MAX)
    return False


async def _own_key(vault: Vault, releases: Releases, purpose: str) -> DataKey:
    """A data key of the installation's own account, the same at every start."""
    context = CallContext(methods.KEYVAULT, (methods.KEYVAULT,), INSTALLATION, "", (), (), "", 0.0, 0.0, "")
    itself = Asker(methods.KEYVAULT, context)
    await vault.provision(itself)
    return await releases.release(itself, purpose, purpose)


async def _restore(settings: KeyvaultSettings, source: Path) -> None:
    clock = SystemClock()
    kms = open_kms(settings, clock)
    try:
        restored = await restore(settings, kms, source, clock)
    finally:
        await kms.close()
    _log.info("database restored", count=restored.accounts)
    if restored.destroyed_again:
        _log.info("what was deleted after the copy was deleted again", count=restored.destroyed_again)


def _stop_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def main() -> None:
    """Entry point of `sealcomb-keyvault`."""
    parser = argparse.ArgumentParser(
        prog="sealcomb-keyvault",
        description="Holds the accounts' keys and releases data keys. Settings come from the environment "
        "(SEALCOMB_LISTEN, SEALCOMB_TLS_DIR, SEALCOMB_CONTEXT_TRUST_DIR, SEALCOMB_CONTEXT_KEY_FILE, "
        "SEALCOMB_DATABASE_URL, SEALCOMB_ROOT_KEY_FILE, SEALCOMB_ROOT_PASSPHRASE_FILE); see docs/keys.md.",
    )
    parser.add_argument(
        "--init-root-key",
        action="store_true",
        help="make the root key file if there is none, sealed if a passphrase file is set, and exit",
    )
    parser.add_argument(
        "--accept-older-database",
        action="store_true",
        help="start with a database that an older copy was put in the place of; what was deleted stays so",
    )
    parser.add_argument(
        "--backup",
        metavar="FILE",
        type=Path,
        help="write a copy of the database, also while it runs, and exit",
    )
    parser.add_argument(
        "--restore", metavar="FILE", type=Path, help="put such a copy in the database's place, and exit"
    )
    add_migrate_option(parser, methods.KEYVAULT)
    arguments = parser.parse_args()
    try:
        forbid_dumps()
        settings = KeyvaultSettings()  # type: ignore[call-arg]  # from the environment
        configure_logging(methods.KEYVAULT, settings.log_level)
        if arguments.init_root_key:
            if settings.root_key_file is None:
                sys.exit("sealcomb-keyvault: settings missing or wrong: SEALCOMB_ROOT_KEY_FILE")
            create_root_key(settings.root_key_file, settings.root_passphrase_file)
            return
        settings.check_root_key_place()
        if arguments.backup is not None:
            back_up(settings, arguments.backup)
            return
        check_randomness()
        is_locked = lock_memory()
        if not is_locked:
            _log.warning(
                "memory is not locked: allow this process to lock all of it (CAP_IPC_LOCK or memlock)"
            )
        if swap_is_on() and not is_locked:
            _log.warning("swap is on: memory that holds keys may reach a disk; turn swap off or encrypt it")
        traces = sending_traces(
            methods.KEYVAULT, settings.otlp_endpoint, settings.otlp_ca_file, settings.trace_share
        )
        with traces, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if arguments.restore is not None:
                runner.run(_restore(settings, arguments.restore))
                return
            runner.run(serve(settings, accept_older=arguments.accept_older_database))
    except ValidationError as error:
        # Without the values: a setting may be a URL with a password.
        fields = ", ".join("SEALCOMB_" + str(problem["loc"][0]).upper() for problem in error.errors())
        sys.exit(f"sealcomb-keyvault: settings missing or wrong: {fields}")
    except SealcombError as error:
        # Such as a disk that is full, or a database that does not answer.
        sys.exit(f"sealcomb-keyvault: {error.message}")
    except (ValueError, LedgerFailed) as error:
        sys.exit(f"sealcomb-keyvault: {error}")


if __name__ == "__main__":
    main()
