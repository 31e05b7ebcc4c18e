"""An edge for tests of the client: real gRPC over TLS, with servicers that a test can script."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sealcomb.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    collection_service_pb2,
    collection_service_pb2_grpc,
    document_service_pb2,
    document_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    vector_service_pb2,
    vector_service_pb2_grpc,
)
from sealcomb_client import Connection
from services.standalone.pki import ensure_installation

TOKEN = "sealcomb_acc_test_token"


@dataclass
class Failure:
    """A status to answer with once."""

    code: grpc.StatusCode
    message: str = "no"
    reason: str = "REASON"
    fields: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None

    def abort(self, context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain="sealcomb.dev", metadata={"request_id": "r1"}
        )
        status.details.add().Pack(info)
        if self.fields:
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=name, description=why)
                for name, why in self.fields
            ]
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(self.code, self.message)


@dataclass
class FakeEdge(
    account_service_pb2_grpc.AccountServiceServicer,
    collection_service_pb2_grpc.CollectionServiceServicer,
    document_service_pb2_grpc.DocumentServiceServicer,
    search_service_pb2_grpc.SearchServiceServicer,
    token_service_pb2_grpc.TokenServiceServicer,
    vector_service_pb2_grpc.VectorServiceServicer,
):
    """Answers from `failures` first, then sensibly; remembers what it was asked."""

    connection: Connection = field(default_factory=lambda: Connection(""))
    failures: list[Failure] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def _enter(self, request: Any, context: grpc.ServicerContext) -> None:
        self.tokens += [str(value) for key, value in context.invocation_metadata() if key == "authorization"]
        self.hints += [
            str(value) for key, value in context.invocation_metadata() if key == "sealcomb-collection"
        ]
        self.requests.append(request)
        with self.lock:
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            failure.abort(context)

    def CreateCollection(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        made = collection_service_pb2.Collection(id="c1", name=request.name, embedder=request.embedder)
        return collection_service_pb2.CreateCollectionResponse(collection=made)

    def ListCollections(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        page = int(request.page_token or 0)
        made = collection_service_pb2.Collection(id=f"c{page}", name=f"name {page}", points=page)
        token = str(page + 1) if page < 2 else ""
        return collection_service_pb2.ListCollectionsResponse(collections=[made], next_page_token=token)

    def DeleteCollection(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return collection_service_pb2.DeleteCollectionResponse()

    def UploadDocument(self, request_iterator: Any, context: Any) -> Any:
        header = next(request_iterator).header
        content = b"".join(message.chunk for message in request_iterator)
        self._enter(header, context)
        self.uploads[header.name] = content
        made = document_service_pb2.Document(id=f"d-{header.name}", name=header.name, size_bytes=len(content))
        return document_service_pb2.UploadDocumentResponse(document=made)

    def GetDocument(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        document = document_service_pb2.Document(id=request.id, name="../../etc/passwd")
        return document_service_pb2.GetDocumentResponse(document=document)

    def DownloadDocument(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        document = document_service_pb2.Document(id=request.id, name="a.txt")
        yield document_service_pb2.DownloadDocumentResponse(document=document)
        yield document_service_pb2.DownloadDocumentResponse(chunk=b"one ")
        if request.id == "broken":
            Failure(grpc.StatusCode.DATA_LOSS, "does not open", "OPEN_FAILED").abort(context)
        yield document_service_pb2.DownloadDocumentResponse(chunk=b"two")

    def Search(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        hit = search_service_pb2.SearchHit(
            document_id="d1",
            document_name="a\x1b[31m.pdf",
            page=3,
            text="sealed under its own key",
            score=0.5,
        )
        return search_service_pb2.SearchResponse(hits=[hit])

    def CreateToken(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        info = token_service_pb2.TokenInfo(id="t1", label=request.label, scopes=request.scopes)
        return token_service_pb2.CreateTokenResponse(token="sealcomb_acc_new", info=info)

    def Upsert(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return vector_service_pb2.UpsertResponse(upserted=len(request.points))

    def UpsertStream(self, requests: Any, context: Any) -> Any:
        answer = vector_service_pb2.UpsertStreamResponse()
        for request in requests:
            self._enter(request, context)
            for place, point in enumerate(request.points):
                if point.id == "bad":
                    answer.failed += 1
                    answer.failures.add(position=place, field="id", message="is bad")
                else:
                    answer.upserted += 1
        return answer

    def Query(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        hit = vector_service_pb2.Hit(id="p", score=1.0, vector_f32=request.vector_f32)
        return vector_service_pb2.QueryResponse(hits=[hit])

    def UpdateAccount(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return account_service_pb2.UpdateAccountResponse()

    def GetUsage(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        days = [account_service_pb2.DayUsage(date=f"2026-11-2{n}", calls=n, bytes=10**n) for n in (4, 3)]
        month = account_service_pb2.DayUsage(date="2026-11-01", calls=7)
        return account_service_pb2.GetUsageResponse(days=days, month=month)


@contextmanager
def serving(folder: Path) -> Iterator[FakeEdge]:
    """A fake edge on a free port, with the certificates of an installation of its own."""
    installation = ensure_installation(folder / "keys")
    edge = FakeEdge()  # type: ignore[abstract]  # what it does not answer is unimplemented
    server = grpc.server(ThreadPoolExecutor(4))
    account_service_pb2_grpc.add_AccountServiceServicer_to_server(edge, server)
    collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(edge, server)
    document_service_pb2_grpc.add_DocumentServiceServicer_to_server(edge, server)
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(edge, server)
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(edge, server)
    vector_service_pb2_grpc.add_VectorServiceServicer_to_server(edge, server)
    state = health.HealthServicer()
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    pair = (
        (installation.edge_tls_dir / "key.pem").read_bytes(),
        (installation.edge_tls_dir / "cert.pem").read_bytes(),
    )
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    edge.connection = Connection(f"127.0.0.1:{port}", installation.edge_ca_file, TOKEN)
    try:
        yield edge
    finally:
        server.stop(0).wait()
