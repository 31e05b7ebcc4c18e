"""Ingest as it really runs, over real mutual TLS, between a keyvault and a vectorstore made of dictionaries.

The fakes keep the contract of the protos and check their callers with the real guard, so a context
or permit that the real peers would refuse is refused here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.rpc import error_details_pb2, status_pb2

from sealcomb.internal.v1 import keyvault_service_pb2 as kv
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as kv_stubs
from sealcomb.internal.v1 import passage_service_pb2 as ps
from sealcomb.internal.v1 import passage_service_pb2_grpc as ps_stubs
from sealcomb.v1 import document_service_pb2 as docs
from sealcomb.v1 import document_service_pb2_grpc as docs_stubs
from sealcomb.v1 import ingestion_service_pb2 as ingestion
from sealcomb.v1 import ingestion_service_pb2_grpc as ingestion_stubs
from sealcomb.v1 import search_service_pb2 as search
from sealcomb.v1 import search_service_pb2_grpc as search_stubs
from sealcomb.v1 import source_service_pb2 as source
from sealcomb.v1 import source_service_pb2_grpc as source_stubs
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import (
    HEADER,
    CallContext,
    ContextSigner,
    ContextVerifier,
    current_account,
    current_caller,
)
from services.common.errors import FailedPrecondition, KeyDisabled, NotFound, PermissionDenied, SealcombError
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.rpc.status import DETAILS_KEY
from services.common.tls import TlsMaterial, host_of
from services.ingest.config import IngestSettings
from services.ingest.main import serve
from tests.certificates import TestCa
from tests.ingest.hash_embedder import HashEmbedder

ACCOUNT = ids.from_bytes(b"account-one-0000")
OTHER_ACCOUNT = ids.from_bytes(b"account-two-0000")


@dataclass
class FakeKeyvault(kv_stubs.KeyReleaseServiceServicer):
    """Keys, permits and events in memory."""

    signer: ContextSigner
    keys: dict[tuple[str, str, str], tuple[str, bytes]] = field(default_factory=dict)
    disabled: set[str] = field(default_factory=set)
    destroyed: set[str] = field(default_factory=set)
    permits: dict[str, bool] = field(default_factory=dict)
    grants: dict[str, CallContext] = field(default_factory=dict)
    suspended: set[str] = field(default_factory=set)
    watchers: list[asyncio.Queue[kv.WatchKeyEventsResponse]] = field(default_factory=list)
    releases: int = 0

    async def GetDataKey(self, request: kv.GetDataKeyRequest, _context: Any) -> kv.GetDataKeyResponse:
        """The one key of a resource."""
        self.releases += 1
        self._check_permit()
        if current_account() in self.disabled:
            raise KeyDisabled
        if request.resource in self.destroyed:
            raise NotFound("no such key", reason="KEY_NOT_FOUND")
        slot = (current_account(), request.resource, request.purpose)
        key_id, secret = self.keys.setdefault(slot, (ids.new_id(), secrets.token_bytes(32)))
        if request.key_id not in ("", key_id):
            raise NotFound("no such key", reason="KEY_NOT_FOUND")
        return kv.GetDataKeyResponse(key_id=key_id, secret=secret)

    async def IssuePermit(self, request: kv.IssuePermitRequest, _context: Any) -> kv.IssuePermitResponse:
        """A permit as keyvault signs it."""
        if current_account() in self.suspended:
            raise PermissionDenied("the account is suspended", reason="ACCOUNT_SUSPENDED")
        now = SystemClock().now_s()
        self.permits[request.job_id] = True
        context = replace(
            current_caller().context,
            issuer="keyvault",
            audience=("vectorstore", "keyvault"),
            issued_s=now,
            expires_s=now + request.ttl_s,
            job_id=request.job_id,
            bearer="ingest",
        )
        if request.collection_id:
            context = replace(context, collections=(), collection_ids=(request.collection_id,))
        grant = ""
        if request.standing:
            # As keyvault's own, a grant is signed and says nothing of names; here it is looked up.
            grant = f"grant-{request.job_id}"
            self.grants[grant] = context
        return kv.IssuePermitResponse(permit=self.signer.sign(context), grant=grant)

    async def RenewPermit(self, request: kv.RenewPermitRequest, _context: Any) -> kv.RenewPermitResponse:
        """A fresh permit, unless the job has ended or the account may not."""
        found = self.grants.get(request.grant)
        if found is None or not self.permits.get(found.job_id):
            raise PermissionDenied("the permit has ended", reason="PERMIT_ENDED")
        if found.account in self.disabled:
            raise KeyDisabled
        if found.account in self.suspended:
            raise FailedPrecondition("the account is suspended", reason="ACCOUNT_SUSPENDED")
        now = SystemClock().now_s()
        fresh = replace(found, issued_s=now, expires_s=now + request.ttl_s)
        return kv.RenewPermitResponse(permit=self.signer.sign(fresh))

    async def DestroyResource(
        self, request: kv.DestroyResourceRequest, _context: Any
    ) -> kv.DestroyResourceResponse:
        """Destroys keys, and tells everybody."""
        self.destroyed.add(request.resource)
        self.push(kv.KEY_EVENT_RESOURCE_DESTROYED, current_account(), request.resource)
        return kv.DestroyResourceResponse()

    async def EndPermit(self, request: kv.EndPermitRequest, _context: Any) -> kv.EndPermitResponse:
        """Ends a permit."""
        self.permits[request.job_id] = False
        return kv.EndPermitResponse()

    async def ListDestroyed(
        self, _request: kv.ListDestroyedRequest, _context: Any
    ) -> kv.ListDestroyedResponse:
        """Nothing was missed."""
        return kv.ListDestroyedResponse()

    async def WatchKeyEvents(
        self, _request: kv.WatchKeyEventsRequest, _context: Any
    ) -> AsyncIterator[kv.WatchKeyEventsResponse]:
        """Events as the test makes them."""
        queue: asyncio.Queue[kv.WatchKeyEventsResponse] = asyncio.Queue()
        self.watchers.append(queue)
        yield kv.WatchKeyEventsResponse(event=kv.KEY_EVENT_HEARTBEAT)
        while True:
            yield await queue.get()

    def push(self, event: kv.KeyEvent.ValueType, account: str, resource: str = "") -> None:
        """Sends an event to every watcher."""
        for queue in self.watchers:
            queue.put_nowait(kv.WatchKeyEventsResponse(event=event, account=account, resource=resource))

    def _check_permit(self) -> None:
        job_id = current_caller().context.job_id
        if job_id and not self.permits[job_id]:
            raise FailedPrecondition("the permit was ended", reason="PERMIT_ENDED")


@dataclass
class FakeCollection:
    """A text collection: records and passages by document id."""

    account: str
    id: str = field(default_factory=ids.new_id)
    dimension: int = 64
    embedder: str = "hash"
    fingerprint: str = ""
    records: dict[str, ps.DocumentRecord] = field(default_factory=dict)
    passages: dict[str, list[ps.Passage]] = field(default_factory=dict)


@dataclass
class FakeVectorstore(ps_stubs.PassageServiceServicer):
    """Collections in memory; `before_put` and `after_put` are where a test makes trouble."""

    collections: dict[tuple[str, str], FakeCollection] = field(default_factory=dict)
    before_put: Callable[[], Awaitable[None]] | None = None
    after_put: Callable[[], Awaitable[None]] | None = None
    put_methods: list[str] = field(default_factory=list)
    searches: list[ps.SearchPassagesRequest] = field(default_factory=list)

    async def ResolveCollection(
        self, request: ps.ResolveCollectionRequest, _context: Any
    ) -> ps.ResolveCollectionResponse:
        """A collection by name."""
        found = self._named(request.collection)
        key = request.idempotency_key
        earlier = [record for record in found.records.values() if key and record.idempotency_key == key]
        return ps.ResolveCollectionResponse(
            collection_id=found.id,
            dimension=found.dimension,
            embedder=found.embedder,
            embedder_fingerprint=found.fingerprint,
            document=earlier[0] if earlier else None,
        )

    async def PutDocument(self, request: ps.PutDocumentRequest, _context: Any) -> ps.PutDocumentResponse:
        """Commits, unless the test interferes."""
        self.put_methods.append(current_caller().context.bearer)
        if self.before_put is not None:
            await self.before_put()
        for (account, _name), collection in self.collections.items():
            if account == current_account() and collection.id == request.collection_id:
                self._check_permit(collection)
                key = request.document.idempotency_key
                for record in collection.records.values():
                    if key and record.idempotency_key == key:
                        return ps.PutDocumentResponse(document=record)
                same = collection.records.get(request.document.id)
                if same is not None and same.object_key == request.document.object_key:
                    return ps.PutDocumentResponse(document=same)
                assert same is None or request.replaces_document_id == request.document.id
                collection.records[request.document.id] = request.document
                collection.passages[request.document.id] = list(request.passages)
                if self.after_put is not None:
                    await self.after_put()
                return ps.PutDocumentResponse(document=request.document)
        raise NotFound("no such collection", reason="COLLECTION_NOT_FOUND")

    async def GetDocumentRecord(
        self, request: ps.GetDocumentRecordRequest, _context: Any
    ) -> ps.GetDocumentRecordResponse:
        """One record by id or key."""
        collection = self._named(request.collection)
        for record in collection.records.values():
            if request.id in (record.id, "") and request.idempotency_key in (record.idempotency_key, ""):
                return ps.GetDocumentRecordResponse(collection_id=collection.id, document=record)
        raise NotFound("no such document", reason="DOCUMENT_NOT_FOUND")

    async def ListDocumentRecords(
        self, request: ps.ListDocumentRecordsRequest, _context: Any
    ) -> ps.ListDocumentRecordsResponse:
        """Records from the position in the token."""
        records = list(self._named(request.collection).records.values())
        start = int(request.page_token or 0)
        end = start + request.page_size
        return ps.ListDocumentRecordsResponse(
            documents=records[start:end], next_page_token=str(end) if end < len(records) else ""
        )

    async def DeleteDocumentRecord(
        self, request: ps.DeleteDocumentRecordRequest, _context: Any
    ) -> ps.DeleteDocumentRecordResponse:
        """Removes a record and its passages."""
        collection = self._with_id(request.collection_id) if request.collection_id else None
        collection = collection or self._named(request.collection)
        record = collection.records.pop(request.id, None)
        if record is None:
            raise NotFound("no such document", reason="DOCUMENT_NOT_FOUND")
        del collection.passages[request.id]
        return ps.DeleteDocumentRecordResponse(collection_id=collection.id, object_key=record.object_key)

    async def SearchPassages(
        self, request: ps.SearchPassagesRequest, _context: Any
    ) -> ps.SearchPassagesResponse:
        """Passages by cosine, whatever the mode."""
        self.searches.append(request)
        collection = self._named(request.collection)
        wanted = np.frombuffer(request.vector_f32, "<f4")
        hits = []
        for document_id, passages in collection.passages.items():
            for passage in passages:
                score = float(np.frombuffer(passage.vector_f32, "<f4") @ wanted) if wanted.size else 0.0
                hits.append(
                    search.SearchHit(
                        document_id=document_id,
                        document_name=collection.records[document_id].name,
                        page=passage.page,
                        chunk_index=passage.index,
                        text=passage.text,
                        score=score,
                        metadata=collection.records[document_id].metadata,
                        heading=passage.heading,
                    )
                )
        hits.sort(key=lambda hit: -hit.score)
        return ps.SearchPassagesResponse(hits=hits[: request.top_k])

    def _named(self, name: str) -> FakeCollection:
        found = self.collections.get((current_account(), name))
        if found is None:
            raise NotFound("no such collection", reason="COLLECTION_NOT_FOUND")
        self._check_permit(found)
        return found

    def _with_id(self, id_: str) -> FakeCollection:
        for (account, _name), found in self.collections.items():
            if account == current_account() and found.id == id_:
                self._check_permit(found)
                return found
        raise NotFound("no such collection", reason="COLLECTION_NOT_FOUND")

    def _check_permit(self, collection: FakeCollection) -> None:
        allowed = current_caller().context.collection_ids
        if allowed and collection.id not in allowed:
            raise NotFound("no such collection", reason="COLLECTION_NOT_FOUND")


@dataclass
class Rig:
    """One running ingest and what is around it."""

    folder: Path
    settings: IngestSettings
    embedder: HashEmbedder
    keyvault: FakeKeyvault
    vectorstore: FakeVectorstore
    ca: TestCa
    signer: ContextSigner
    port: int = 0
    source_types: tuple[Any, ...] = ()

    @property
    def objects(self) -> list[str]:
        """Keys of all objects on disk."""
        folder = self.folder / "objects"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def collection(self, name: str = "notes", account: str = ACCOUNT, **changes: Any) -> FakeCollection:
        """Makes a text collection for the service's embedder."""
        made = FakeCollection(account, fingerprint=self.embedder.fingerprint)
        made = replace(made, **changes)
        self.vectorstore.collections[account, name] = made
        return made

    def metadata(self, method: str, account: str = ACCOUNT, **changes: Any) -> tuple[tuple[str, str], ...]:
        """The context that the edge would attach."""
        now = SystemClock().now_s()
        audience = ("ingest", "vectorstore", "keyvault")
        context = CallContext(
            "gateway", audience, account, "tok", ("read", "write"), (), method, now, now + 30, "req"
        )
        return ((HEADER, self.signer.sign(replace(context, **changes))),)

    def channel(self, peer: str = "gateway") -> grpc.aio.Channel:
        """A channel with a service's certificate."""
        material = self.ca.service_files(self.folder / "peers", peer).read()
        return open_test_channel(self.port, material)

    async def upload(
        self,
        content: bytes,
        *,
        collection: str = "notes",
        name: str = "a.txt",
        account: str = ACCOUNT,
        chunk_bytes: int = 256 * 1024,
        context: dict[str, Any] | None = None,
        **header: Any,
    ) -> docs.Document:
        """Uploads a document."""
        first = docs.UploadDocumentHeader(collection=collection, name=name, **header)
        parts = [docs.UploadDocumentRequest(header=first)]
        parts += [
            docs.UploadDocumentRequest(chunk=content[start : start + chunk_bytes])
            for start in range(0, len(content), chunk_bytes)
        ]
        return await self.send(parts, account=account, context=context)

    async def send(
        self,
        parts: Iterable[docs.UploadDocumentRequest],
        *,
        account: str = ACCOUNT,
        context: dict[str, Any] | None = None,
    ) -> docs.Document:
        """Sends these messages as an upload."""
        metadata = self.metadata(UPLOAD, account, **(context or {}))
        async with self.channel() as channel:
            response = await docs_stubs.DocumentServiceStub(channel).UploadDocument(
                iter(parts), metadata=metadata, timeout=60
            )
        return response.document

    async def call(self, name: str, request: Any, account: str = ACCOUNT, **changes: Any) -> Any:
        """Calls a unary method of any service."""
        service, make_stub = next(found for names, *found in _SERVICES if name in names)
        async with self.channel() as channel:
            stub: Any = make_stub(channel)
            metadata = self.metadata(f"/sealcomb.v1.{service}/{name}", account, **changes)
            return await getattr(stub, name)(request, metadata=metadata, timeout=30)

    async def download(self, collection: str, document_id: str, account: str = ACCOUNT) -> tuple[Any, bytes]:
        """The described document and its whole content."""
        request = docs.DownloadDocumentRequest(collection=collection, id=document_id)
        async with self.channel() as channel:
            stream = docs_stubs.DocumentServiceStub(channel).DownloadDocument(
                request, metadata=self.metadata(DOWNLOAD, account), timeout=30
            )
            parts = [part async for part in stream]
        assert [part.WhichOneof("part") for part in parts[:1]] == ["document"]
        assert all(len(part.chunk) <= 1024 * 1024 for part in parts)
        return parts[0].document, b"".join(part.chunk for part in parts[1:])


_SERVICES: tuple[tuple[set[str], str, Any], ...] = tuple(
    (set(module.DESCRIPTOR.services_by_name[name].methods_by_name), name, getattr(made, f"{name}Stub"))
    for module, made, name in (
        (docs, docs_stubs, "DocumentService"),
        (search, search_stubs, "SearchService"),
        (source, source_stubs, "SourceService"),
        (ingestion, ingestion_stubs, "IngestionService"),
    )
)
UPLOAD = "/sealcomb.v1.DocumentService/UploadDocument"
DOWNLOAD = "/sealcomb.v1.DocumentService/DownloadDocument"


def open_test_channel(port: int, material: TlsMaterial) -> grpc.aio.Channel:
    """A channel to ingest with this certificate."""
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
    options = [
        ("grpc.ssl_target_name_override", host_of("ingest")),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


def details(error: grpc.aio.AioRpcError) -> tuple[str, list[str]]:
    """Reason and bad fields of a refusal."""
    metadata = error.trailing_metadata()
    raw = next(value for key, value in metadata or () if key == DETAILS_KEY)
    status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
    reason, fields = "", []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    return reason, fields


async def eventually(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  (what is waited for is in another process or file)
            await asyncio.sleep(0.01)


async def refuse(kind: type[SealcombError], reason: str) -> None:
    """Raises an error of the domain."""
    raise kind("refused by the test", reason=reason)


@asynccontextmanager
async def running(
    folder: Path,
    *,
    embedder: HashEmbedder | None = None,
    source_types: Iterable[Any] = (),
    **settings: Any,
) -> AsyncIterator[Rig]:
    """Starts fakes and ingest; stops them again."""
    async with surroundings(folder, embedder=embedder, **settings) as rig:
        rig.source_types = tuple(source_types)
        async with ingest_of(rig):
            yield rig


@asynccontextmanager
async def surroundings(
    folder: Path, *, embedder: HashEmbedder | None = None, database_url: str = "", **settings: Any
) -> AsyncIterator[Rig]:
    """Starts the fakes alone: ingest runs within, or as a process of its own."""
    ca = TestCa.make()
    gateway, keyvault = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trust = folder / "trust"
    _write_trust(trust, {"gateway": gateway, "keyvault": keyvault})
    # The stubs call every method abstract; the ones left out are not ingest's to call.
    fake_keyvault = FakeKeyvault(ContextSigner(keyvault))  # type: ignore[abstract]
    fake_vectorstore = FakeVectorstore()
    servers = []
    for service, add in (
        ("keyvault", lambda server: kv_stubs.add_KeyReleaseServiceServicer_to_server(fake_keyvault, server)),
        (
            "vectorstore",
            lambda server: ps_stubs.add_PassageServiceServicer_to_server(fake_vectorstore, server),
        ),
    ):
        verifier = ContextVerifier.from_folder(service, trust, SystemClock())
        guard = GuardInterceptor(service, rules_for(service), verifier)
        server = InnerServer("127.0.0.1:0", ca.service_files(folder / "tls", service), guard)
        add(server.grpc_server)
        await server.start()
        servers.append(server)
    made = IngestSettings(
        listen="127.0.0.1:0",
        tls_dir=ca.service_files(folder / "tls", "ingest").folder,
        context_trust_dir=trust,
        database_url=database_url or f"sqlite:///{folder}/ingest.db",
        keyvault_address=f"127.0.0.1:{servers[0].port}",
        vectorstore_address=f"127.0.0.1:{servers[1].port}",
        objects_url=f"file:{folder}/objects",
        embedder="onnx:none",
        **settings,
    )
    rig = Rig(
        folder, made, embedder or HashEmbedder(), fake_keyvault, fake_vectorstore, ca, ContextSigner(gateway)
    )
    try:
        yield rig
    finally:
        for server in servers:
            await server.stop(0)


@asynccontextmanager
async def ingest_of(rig: Rig) -> AsyncIterator[None]:
    """Runs ingest within a rig; may be done again to restart it."""
    loop = asyncio.get_running_loop()
    port: asyncio.Future[int] = loop.create_future()
    stopping = asyncio.Event()
    task = asyncio.create_task(serve(rig.settings, rig.embedder, stopping, port.set_result, rig.source_types))

    def failed(done: asyncio.Task[None]) -> None:
        # Ends before it is ready only by failing, and then the failure is what the test should show.
        if not port.done():
            port.set_exception(done.exception() or RuntimeError("ended"))

    task.add_done_callback(failed)
    rig.port = await port
    try:
        yield
    finally:
        stopping.set()
        await task


def _write_trust(folder: Path, keys: dict[str, Ed25519PrivateKey]) -> None:
    folder.mkdir(parents=True)
    for name, key in keys.items():
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub.pem").write_bytes(public)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.key.pem").write_bytes(private)
