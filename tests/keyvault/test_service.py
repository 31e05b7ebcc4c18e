"""Keyvault over real mutual TLS: the services' own client, and the public methods as the edge calls them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.internal.v1 import keyvault_service_pb2, keyvault_service_pb2_grpc
from sealcomb.v1 import audit_service_pb2, audit_service_pb2_grpc, key_service_pb2, key_service_pb2_grpc
from sealcomb_client.audit import checkpoint_head, verify_chain
from sealcomb_client.statements import RECEIPT, verify_statement
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import CallContext, Caller, ContextSigner, ContextVerifier, acting_as
from services.common.datakeys import DataKeys
from services.common.errors import Kind, SealcombError
from services.common.rpc import authorization, interceptor
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import context_metadata, open_channel
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.keyvault import KeyEvent, KeyvaultClient
from services.common.rpc.server import InnerServer
from services.common.tls import TlsFiles
from services.keyvault.kms.file import FileKms
from services.keyvault.public_servicers import AuditServicer, KeyServicer
from services.keyvault.release_servicer import KeyReleaseServicer
from services.standalone.pki import Installation, ensure_installation
from tests.keyvault.rig import Rig

_CREATE_ACCOUNT = "/sealcomb.v1.AccountService/CreateAccount"
_UPDATE_ACCOUNT = "/sealcomb.v1.AccountService/UpdateAccount"
_CREATE = "/sealcomb.v1.CollectionService/CreateCollection"
_DELETE = "/sealcomb.v1.CollectionService/DeleteCollection"
_UPLOAD = "/sealcomb.v1.DocumentService/UploadDocument"
_KEYS = "/sealcomb.v1.KeyService/"
_AUDIT = "/sealcomb.v1.AuditService/"


class _Service:
    """A served keyvault, and callers of all kinds."""

    def __init__(self, rig: Rig, installation: Installation, server: InnerServer) -> None:
        self.rig = rig
        self.installation = installation
        self.server = server
        self.signer = ContextSigner.from_file(installation.context_key_file("gateway"))
        self.account = ids.new_id()
        self.channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, peer: str) -> grpc.aio.Channel:
        """A peer's channel, under its own certificate."""
        if peer not in self.channels:
            tls = TlsFiles(self.installation.tls_dir(peer))
            self.channels[peer] = open_channel(f"127.0.0.1:{self.server.port}", "keyvault", tls)
        return self.channels[peer]

    def client(self, peer: str) -> KeyvaultClient:
        """A peer's client."""
        return KeyvaultClient(self.channel(peer))

    @contextmanager
    def calling(self, method: str, **changes: Any) -> Iterator[None]:
        """The block runs under a fresh context of the account."""
        now_s = SystemClock().now_s()
        plain = CallContext(
            "gateway", ("keyvault",), self.account, "tok1", ("read",), (), method, now_s, now_s + 30, "req1"
        )
        context = replace(plain, **changes)
        with acting_as(Caller(context, self.signer.sign(context))):
            yield

    async def public(self, method: str, request: Any, **changes: Any) -> Any:
        """Calls a public method as the gateway's data plane does."""
        stubs = {
            _KEYS: key_service_pb2_grpc.KeyServiceStub,
            _AUDIT: audit_service_pb2_grpc.AuditServiceStub,
        }
        service, _, name = method.rpartition("/")
        with self.calling(method, **changes):
            call = getattr(stubs[service + "/"](self.channel("gateway")), name)
            return await call(request, metadata=context_metadata(), timeout=5)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[_Service]:
    """Keyvault with one account."""
    installation = ensure_installation(tmp_path / "keys")
    (tmp_path / "data").mkdir()
    rig = Rig(tmp_path / "data" / "keyvault.db", FileKms(bytes(range(32))), SystemClock())  # type: ignore[arg-type]
    rig.permits._signer = ContextSigner.from_file(installation.context_key_file("keyvault"))
    rig.reseals._signer = rig.permits._signer
    verifier = ContextVerifier.from_folder("keyvault", installation.context_trust_dir, SystemClock())
    guard = GuardInterceptor("keyvault", rules_for("keyvault"), verifier)
    server = InnerServer("127.0.0.1:0", TlsFiles(installation.tls_dir("keyvault")), guard)
    keyvault_service_pb2_grpc.add_KeyReleaseServiceServicer_to_server(
        KeyReleaseServicer(
            rig.vault,
            rig.gate,
            rig.releases,
            rig.permits,
            rig.events,
            rig.receipts,
            rig.resealing,
            rig.reseals,
        ),
        server.grpc_server,
    )
    key_service_pb2_grpc.add_KeyServiceServicer_to_server(
        KeyServicer(rig.vault, rig.moves, rig.deletions, rig.receipts, rig.resealing), server.grpc_server
    )
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
        AuditServicer(rig.chain, rig.checkpoints), server.grpc_server
    )
    await server.start()
    service = _Service(rig, installation, server)
    with service.calling(_CREATE_ACCOUNT):
        await service.client("gateway").provision_account()
    yield service
    for channel in service.channels.values():
        await channel.close()
    rig.events.close()
    await server.stop(1)
    rig.close()


async def _reason(call: Any) -> tuple[Kind, str]:
    with pytest.raises(SealcombError) as caught:
        await call
    return caught.value.kind, caught.value.reason


async def test_a_key_travels_to_its_peer_and_again_by_its_id(service: _Service) -> None:
    resource = ids.new_id()
    client = service.client("vectorstore")
    with service.calling(_CREATE):
        key = await client.get_data_key(resource, "collection", "")
        assert await client.get_data_key(resource, "collection", key.id) == key
        assert await client.get_data_key("catalog", "catalog", "") != key
    with service.calling("/sealcomb.v1.TokenService/CreateToken"):
        await service.client("gateway").get_data_key("profile", "profile", "")


async def test_errors_arrive_with_their_reasons(service: _Service) -> None:
    client, resource = service.client("vectorstore"), ids.new_id()
    with service.calling(_CREATE):
        key = await client.get_data_key(resource, "collection", "")
        assert await _reason(client.get_data_key(resource, "documents", "")) == (
            Kind.PERMISSION_DENIED,
            "PURPOSE_REFUSED",
        )
        assert await _reason(client.get_data_key("x", "collection", "")) == (
            Kind.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        )
        unknown = await _reason(client.get_data_key(resource, "collection", ids.new_id()))
        assert unknown == (Kind.NOT_FOUND, "KEY_NOT_FOUND")
    with service.calling(_CREATE, account=ids.new_id()):
        assert await _reason(client.get_data_key(resource, "collection", key.id)) == (
            Kind.NOT_FOUND,
            "ACCOUNT_NOT_FOUND",
        )
    await service.public(_KEYS + "DisableKey", key_service_pb2.DisableKeyRequest())
    with service.calling(_CREATE):
        assert await _reason(client.get_data_key(resource, "collection", "")) == (
            Kind.FAILED_PRECONDITION,
            "KEY_DISABLED",
        )


async def test_a_certificate_without_the_right_context_opens_nothing(service: _Service) -> None:
    """C4, C5, C6: no context, another audience, another method's, an operator's, an expired, a forged one."""
    client, resource = service.client("vectorstore"), ids.new_id()
    refused = (Kind.UNAUTHENTICATED, "CONTEXT_REFUSED")
    assert await _reason(client.get_data_key(resource, "collection", "")) == refused
    now_s = SystemClock().now_s()
    odd: list[dict[str, Any]] = [
        {"audience": ("vectorstore",)},
        {"method": _KEYS + "GetKey"},
        {"account": ""},
        {"issued_s": now_s - 60, "expires_s": now_s - 30},
        {"expires_s": now_s + 86_400},
        {"issuer": "keyvault", "bearer": "vectorstore"},
        {"bearer": "vectorstore"},
    ]
    for changes in odd:
        with service.calling(**{"method": _CREATE, **changes}):
            assert await _reason(client.get_data_key(resource, "collection", "")) == refused
    service.signer = ContextSigner.from_file(service.installation.context_key_file("keyvault"))
    with service.calling(_CREATE):
        assert await _reason(client.get_data_key(resource, "collection", "")) == refused


async def test_a_foreign_context_opens_once_it_is_not_checked(
    service: _Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C5's twin: with the check of method and origin off, a context of GetKey releases a data key."""
    monkeypatch.setattr(interceptor, "check_context", lambda *_arguments: None)
    with service.calling(_KEYS + "GetKey"):
        await service.client("vectorstore").get_data_key(ids.new_id(), "collection", "")


async def test_a_context_of_another_audience_opens_once_audiences_are_not_checked(
    service: _Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C6's twin."""
    check = ContextVerifier.verify

    def credulous(self: ContextVerifier, text: str) -> CallContext:
        self._audience = "vectorstore"
        return check(self, text)

    monkeypatch.setattr(ContextVerifier, "verify", credulous)
    with service.calling(_CREATE, audience=("vectorstore",)):
        await service.client("vectorstore").get_data_key(ids.new_id(), "collection", "")


async def test_peers_reach_their_own_methods_alone(service: _Service) -> None:
    """C1: the table of peers, over real certificates."""
    refused = (Kind.PERMISSION_DENIED, "PEER_REFUSED")
    for peer in ("vectorstore", "ingest", "keyvault"):
        client = service.client(peer)
        with service.calling(_CREATE_ACCOUNT):
            assert await _reason(client.provision_account()) == refused
            assert await _reason(client.destroy_account()) == refused
            assert await _reason(client.set_account_suspended(True)) == refused
            assert await _reason(client.record_event("token.create", "")) == refused
    for peer in ("vectorstore", "gateway", "keyvault"):
        with service.calling(_UPLOAD):
            assert await _reason(service.client(peer).issue_permit(ids.new_id(), 60)) == refused
    with service.calling(_DELETE):
        assert await _reason(service.client("gateway").destroy_resource(ids.new_id())) == refused
    rules = rules_for("keyvault")
    assert {path for path in rules if "KeyService/" in path or "AuditService/" in path} == {
        *(_KEYS + name for name in ("GetKey", "RotateKey", "BindKey", "DisableKey", "EnableKey")),
        *(_KEYS + name for name in ("ScheduleKeyDeletion", "CancelKeyDeletion")),
        *(_AUDIT + name for name in ("ListEvents", "ExportEvents", "GetCheckpoint", "ExportAccountEvents")),
    }
    assert authorization.INNER_RULES.keys() <= rules.keys()


async def test_public_methods_describe_rotate_and_switch_the_key(service: _Service) -> None:
    with service.calling(_CREATE):
        await service.client("vectorstore").get_data_key(ids.new_id(), "collection", "")
    key = (await service.public(_KEYS + "GetKey", key_service_pb2.GetKeyRequest())).key
    assert (key.state, key.version, key.provider, key.data_keys) == (
        key_service_pb2.KEY_STATE_ENABLED,
        1,
        "file",
        1,
    )
    assert key.create_time.seconds > 0
    assert not key.HasField("rotate_time")
    rotated = (await service.public(_KEYS + "RotateKey", key_service_pb2.RotateKeyRequest())).key
    assert rotated.version == 2
    assert rotated.HasField("rotate_time")
    off = (await service.public(_KEYS + "DisableKey", key_service_pb2.DisableKeyRequest())).key
    on = (await service.public(_KEYS + "EnableKey", key_service_pb2.EnableKeyRequest())).key
    assert (off.state, on.state) == (key_service_pb2.KEY_STATE_DISABLED, key_service_pb2.KEY_STATE_ENABLED)


async def test_a_key_is_bound_by_its_owner_alone_and_only_where_there_is_a_kms_for_it(
    service: _Service,
) -> None:
    bound = key_service_pb2.BindKeyRequest(installation=key_service_pb2.InstallationKey())
    key = (await service.public(_KEYS + "BindKey", bound)).key
    assert (key.version, key.provider, key.adopted_key, key.HasField("move")) == (2, "file", "", False)
    for request in (
        key_service_pb2.BindKeyRequest(),
        key_service_pb2.BindKeyRequest(aws=key_service_pb2.AwsKey(arn="arn")),
        key_service_pb2.BindKeyRequest(transit=key_service_pb2.TransitKey(mount="m", name="n")),
        key_service_pb2.BindKeyRequest(pkcs11=key_service_pb2.Pkcs11Key(label="l")),
        key_service_pb2.BindKeyRequest(pkcs11=key_service_pb2.Pkcs11Key(label="l" * 100_000)),
        key_service_pb2.BindKeyRequest(pkcs11=key_service_pb2.Pkcs11Key()),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            await service.public(_KEYS + "BindKey", request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    stub = key_service_pb2_grpc.KeyServiceStub(service.channel("gateway"))
    with service.calling(_KEYS + "GetKey"):
        call = stub.BindKey(bound, metadata=context_metadata(), timeout=5)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_audit_chain_is_listed_and_exported_also_while_the_key_is_off(service: _Service) -> None:
    with service.calling(_CREATE):
        for _ in range(5):
            await service.client("vectorstore").get_data_key(ids.new_id(), "collection", "")
    await service.public(_KEYS + "DisableKey", key_service_pb2.DisableKeyRequest())
    listed: list[Any] = []
    token = ""
    while not listed or token:
        request = audit_service_pb2.ListEventsRequest(page_size=3, page_token=token)
        page = await service.public(_AUDIT + "ListEvents", request)
        listed += page.events
        token = page.next_page_token
    assert [event.sequence for event in listed] == list(range(1, 8))
    assert listed[-1].action == "key.disable"
    with service.calling(_AUDIT + "ExportEvents"):
        stub = audit_service_pb2_grpc.AuditServiceStub(service.channel("gateway"))
        stream = stub.ExportEvents(
            audit_service_pb2.ExportEventsRequest(), metadata=context_metadata(), timeout=5
        )
        lines = [message.line async for message in stream]
    head = verify_chain(lines)
    assert head is not None
    assert head.hash == listed[-1].hash.hex()
    for odd in ("x", token + "A", "A" * 5000):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.public(_AUDIT + "ListEvents", audit_service_pb2.ListEventsRequest(page_token=odd))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_job_goes_on_under_its_permit_until_it_ends(service: _Service) -> None:
    ingest, job_id, resource = service.client("ingest"), ids.new_id(), ids.new_id()
    with service.calling(_UPLOAD, audience=("ingest", "vectorstore", "keyvault")):
        text = await ingest.issue_permit(job_id, 600)
    verifier = ContextVerifier.from_folder("keyvault", service.installation.context_trust_dir, SystemClock())
    with acting_as(Caller(verifier.verify(text), text)):
        await ingest.get_data_key(resource, "documents", "")
        refused = (Kind.UNAUTHENTICATED, "CONTEXT_REFUSED")
        # Ingest passes it on to vectorstore, which asks for keys of its own with it; nobody else may.
        await service.client("vectorstore").get_data_key(resource, "collection", "")
        assert await _reason(service.client("gateway").get_data_key("profile", "profile", "")) == refused
        assert await _reason(ingest.destroy_resource(resource)) == refused
        assert await _reason(ingest.issue_permit(ids.new_id(), 600)) == refused
        await ingest.end_permit(job_id)
        ended = (Kind.PERMISSION_DENIED, "PERMIT_ENDED")
        assert await _reason(ingest.get_data_key(resource, "documents", "")) == ended


async def test_a_disabled_key_is_out_of_every_cache_within_a_second(service: _Service) -> None:
    """D14: the services' cache behind the services' watch, over the wire."""
    client, resource = service.client("vectorstore"), ids.new_id()
    keys = DataKeys(client, SystemClock())
    events: list[tuple[KeyEvent, str, str]] = []
    connected = asyncio.Event()

    async def on_event(event: KeyEvent, account: str, changed: str) -> None:
        events.append((event, account, changed))
        if event is KeyEvent.RECONNECTED:
            keys.drop_all()
            connected.set()
        elif event is not KeyEvent.ENABLED:
            keys.drop_account(account)

    watch = asyncio.create_task(client.watch(on_event))
    await asyncio.wait_for(connected.wait(), 5)
    with service.calling(_CREATE):
        key = await keys.current(resource, "collection")
        await service.public(_KEYS + "DisableKey", key_service_pb2.DisableKeyRequest())
        with pytest.raises(SealcombError) as caught:
            await asyncio.wait_for(_use_for_ever(keys, resource), 1.0)
        assert caught.value.reason == "KEY_DISABLED"
        await service.public(_KEYS + "EnableKey", key_service_pb2.EnableKeyRequest())
        assert await keys.current(resource, "collection") == key
    with service.calling(_UPDATE_ACCOUNT):
        await service.client("gateway").set_account_suspended(True)
        await service.client("gateway").set_account_suspended(False)
    with service.calling(_DELETE):
        await client.destroy_resource(resource)
    with service.calling(_UPDATE_ACCOUNT):
        await service.client("gateway").destroy_account()
    await asyncio.sleep(0.2)
    watch.cancel()
    assert events == [
        (KeyEvent.RECONNECTED, "", ""),
        (KeyEvent.DISABLED, service.account, ""),
        (KeyEvent.ENABLED, service.account, ""),
        (KeyEvent.SUSPENDED, service.account, ""),
        (KeyEvent.RESUMED, service.account, ""),
        (KeyEvent.RESOURCE_DESTROYED, service.account, resource),
        (KeyEvent.ACCOUNT_DESTROYED, service.account, ""),
    ]


async def test_a_watch_that_was_lost_comes_back(service: _Service) -> None:
    reconnected: list[KeyEvent] = []

    async def on_event(event: KeyEvent, _account: str, _resource: str) -> None:
        reconnected.append(event)

    watch = asyncio.create_task(service.client("ingest").watch(on_event))
    await asyncio.sleep(0.3)
    for watcher in service.rig.events._watchers:
        watcher.end()
    await asyncio.sleep(0.6)
    watch.cancel()
    assert reconnected == [KeyEvent.RECONNECTED] * 2


@pytest.mark.parametrize("fails_at", [KeyEvent.RECONNECTED, KeyEvent.DISABLED])
async def test_a_watch_whose_listener_fails_begins_again_with_everything_dropped(
    service: _Service, fails_at: KeyEvent
) -> None:
    """D14: an error that nobody foresaw must not leave a service without word for ever."""
    told: list[KeyEvent] = []
    failing = [fails_at]

    async def on_event(event: KeyEvent, _account: str, _resource: str) -> None:
        if event in failing:
            failing.clear()
            raise RuntimeError("nobody foresaw this")
        told.append(event)

    async def until(expected: list[KeyEvent]) -> None:
        end = asyncio.get_running_loop().time() + 30
        while told != expected:
            assert asyncio.get_running_loop().time() < end, told
            await asyncio.sleep(0.01)

    watch = asyncio.create_task(service.client("ingest").watch(on_event))
    before = [KeyEvent.RECONNECTED]
    await until(before)
    with service.calling(_CREATE):
        await service.public(_KEYS + "DisableKey", key_service_pb2.DisableKeyRequest())
        after = KeyEvent.DISABLED if fails_at is KeyEvent.RECONNECTED else KeyEvent.RECONNECTED
        await until([*before, after])
        await service.public(_KEYS + "EnableKey", key_service_pb2.EnableKeyRequest())
        await until([*before, after, KeyEvent.ENABLED])
    watch.cancel()


async def test_what_was_destroyed_meanwhile_is_told_until_it_is_removed(service: _Service) -> None:
    """F8: each service on its own, in order, and again after an error; nobody removes the future."""
    first, second = ids.new_id(), ids.new_id()
    for resource in (first, second):
        with service.calling(_DELETE):
            await service.client("vectorstore").destroy_resource(resource)
    told: list[tuple[KeyEvent, str, str]] = []
    failing = [second]

    async def on_event(event: KeyEvent, account: str, resource: str) -> None:
        told.append((event, account, resource))
        if resource in failing:
            failing.clear()
            raise ValueError("not now")

    destroyed = [(KeyEvent.RESOURCE_DESTROYED, service.account, resource) for resource in (first, second)]
    # The first time one of them fails; what is not said to be removed is told again, and then no more.
    for expected in (destroyed, destroyed, []):
        told.clear()
        watch = asyncio.create_task(service.client("ingest").watch(on_event, removes=True))
        end = asyncio.get_running_loop().time() + 10
        while told != [(KeyEvent.RECONNECTED, "", ""), *expected]:
            assert asyncio.get_running_loop().time() < end, told
            await asyncio.sleep(0.01)
        # The place is said with the question for more.
        await asyncio.sleep(0.3)
        watch.cancel()
    stub = keyvault_service_pb2_grpc.KeyReleaseServiceStub(service.channel("vectorstore"))
    ahead = keyvault_service_pb2.ListDestroyedRequest(removed_up_to=2**63)
    assert not (await stub.ListDestroyed(ahead, timeout=5)).destroyed
    third = ids.new_id()
    with service.calling(_DELETE):
        await service.client("vectorstore").destroy_resource(third)
    listed = await stub.ListDestroyed(keyvault_service_pb2.ListDestroyedRequest(), timeout=5)
    assert [(one.account, one.resource) for one in listed.destroyed] == [(service.account, third)]
    gateway = keyvault_service_pb2_grpc.KeyReleaseServiceStub(service.channel("gateway"))
    refused = gateway.ListDestroyed(keyvault_service_pb2.ListDestroyedRequest(), timeout=5)
    assert await refused.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_watcher_that_hung_up_is_gone_soon(service: _Service) -> None:
    """Watches are bounded in number, so a lost one must not stay."""

    async def on_event(_event: KeyEvent, _account: str, _resource: str) -> None:
        connected.set()

    for _ in range(3):
        connected = asyncio.Event()
        watch = asyncio.create_task(service.client("ingest").watch(on_event))
        await asyncio.wait_for(connected.wait(), 5)
        watch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watch
    await asyncio.sleep(0.3)
    assert not service.rig.events._watchers


async def _use_for_ever(keys: DataKeys, resource: str) -> None:
    while True:
        await keys.current(resource, "collection")
        await asyncio.sleep(0.01)


async def test_a_key_is_scheduled_cancelled_and_destroyed_with_a_receipt_by_public_methods(
    service: _Service,
) -> None:
    """D21, over the wire: the state, the time it is due, the confirmation, the signed receipt."""
    schedule = _KEYS + "ScheduleKeyDeletion"
    request = key_service_pb2.ScheduleKeyDeletionRequest(wait_days=7)
    key = (await service.public(schedule, request)).key
    assert key.state == key_service_pb2.KEY_STATE_PENDING_DELETION
    assert 6.9 * 86_400 < key.deletion_time.seconds - SystemClock().now_s() <= 7 * 86_400
    got = (await service.public(_KEYS + "GetKey", key_service_pb2.GetKeyRequest())).key
    assert got.deletion_time == key.deletion_time
    cancel = key_service_pb2.CancelKeyDeletionRequest()
    key = (await service.public(_KEYS + "CancelKeyDeletion", cancel)).key
    assert (key.state, key.HasField("deletion_time")) == (key_service_pb2.KEY_STATE_DISABLED, False)
    for bad in (
        key_service_pb2.ScheduleKeyDeletionRequest(confirm=ids.new_id()),
        key_service_pb2.ScheduleKeyDeletionRequest(confirm=service.account, wait_days=7),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.public(schedule, bad)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    at_once = key_service_pb2.ScheduleKeyDeletionRequest(confirm=service.account)
    receipt = (await service.public(schedule, at_once)).receipt
    public_key = service.rig.statements.public_pem.encode()
    assert verify_statement(receipt, RECEIPT, public_key)["account"] == service.account
    with service.calling("/sealcomb.v1.AccountService/DeleteAccount"):
        assert await service.client("gateway").destroy_account() == receipt


async def test_a_checkpoint_and_the_operators_export_come_over_the_wire(service: _Service) -> None:
    """D19: an operator's context, which has no account, exports the account that it names."""
    response = await service.public(_AUDIT + "GetCheckpoint", audit_service_pb2.GetCheckpointRequest())
    key = response.public_key.encode()
    head = checkpoint_head(response.checkpoint, key)
    stub = audit_service_pb2_grpc.AuditServiceStub(service.channel("gateway"))
    request = audit_service_pb2.ExportAccountEventsRequest(account_id=service.account)
    with service.calling(_AUDIT + "ExportAccountEvents", account="", scopes=("operator",)):
        stream = stub.ExportAccountEvents(request, metadata=context_metadata(), timeout=5)
        lines = [part.line async for part in stream]
    after = verify_chain(lines, head, key)
    # That it was read is a record of its own.
    assert after is not None
    assert head is not None
    assert after.sequence == head.sequence + 1


async def test_an_accounts_context_of_another_method_exports_no_other_account(service: _Service) -> None:
    """C5: the edge signs that method's context for operator tokens alone."""
    stub = audit_service_pb2_grpc.AuditServiceStub(service.channel("gateway"))
    request = audit_service_pb2.ExportAccountEventsRequest(account_id=service.account)
    with service.calling(_AUDIT + "ExportEvents", account=ids.new_id()):
        stream = stub.ExportAccountEvents(request, metadata=context_metadata(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [part async for part in stream]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
