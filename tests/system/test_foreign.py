"""MATRIX: another account's ids answer exactly like ids that do not exist, in every method and field.

The methods and their identifier fields are found by walking the descriptors, so that a new one
cannot be forgotten: a method without a sample request here fails the first test.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import Message

from sealcomb.v1 import (
    account_service_pb2,
    audit_service_pb2,
    collection_service_pb2,
    document_service_pb2,
    ingestion_service_pb2,
    key_service_pb2,
    search_service_pb2,
    source_service_pb2,
    token_service_pb2,
    vector_service_pb2,
)
from sealcomb_client.content import point, point_update
from services.common import ids
from tests.system.installation import Account, Installation
from tests.system.raw import Answer, RawCaller

MODULES = (
    audit_service_pb2,
    collection_service_pb2,
    document_service_pb2,
    ingestion_service_pb2,
    key_service_pb2,
    search_service_pb2,
    source_service_pb2,
    token_service_pb2,
    vector_service_pb2,
)
IDENTIFIERS = {"collection", "collections", "connection_id", "id", "ids", "page_token"}
VECTOR = [1.0, 0.0]


@dataclass(frozen=True)
class World:
    """What one account has."""

    account: Account
    vectors: str
    texts: str
    document: str
    point: str
    token: str
    connection: str
    ingestion: str
    page_tokens: dict[str, str]


def make_world(account: Account) -> World:
    """An account with two of everything, under names that no other account has."""
    client = account.client
    mark = secrets.token_hex(6)
    vectors, texts = f"vectors {mark}", f"texts {mark}"
    client.collections.create(vectors, dimension=2)
    client.collections.create(texts, embedder="default")
    client.points.upsert(vectors, [point(f"point {mark}", VECTOR), point(f"other {mark}", VECTOR)])
    documents = [
        client.documents.upload(texts, f"Seal {n} {mark}.".encode(), name=f"{n}.txt") for n in range(2)
    ]
    token = client.tokens.create(f"label {mark}", ["read"]).info.id
    # A site that is not there: its ingestion fails at once, which is all that is needed of it.
    sites = {"start_urls": ["https://site.invalid/"]}
    connections = [client.sources.begin("web", sites).connection_id for _ in range(2)]
    ingestions = [client.ingestions.create(texts, connection_id=connections[0]).id for _ in range(2)]
    world = World(
        account,
        vectors,
        texts,
        documents[0].id,
        f"point {mark}",
        token,
        connections[0],
        ingestions[0],
        {"IngestionService/ListFailedItems": "x", "DocumentService/ResealDocuments": "x"},
    )
    caller = RawCaller(account.connection)
    for path, sample in SAMPLES.items():
        request = sample(world)
        if "page_size" in request.DESCRIPTOR.fields_by_name and path not in world.page_tokens:
            request.page_size = 1
            answer = caller(f"/sealcomb.v1.{path}", request.SerializeToString())
            response = response_type(path)()
            response.ParseFromString(answer.body)
            assert response.next_page_token, path
            world.page_tokens[path] = response.next_page_token
    caller.close()
    return world


SAMPLES: dict[str, Callable[[World], Any]] = {
    "AuditService/ListEvents": lambda w: audit_service_pb2.ListEventsRequest(),
    "CollectionService/CreateCollection": lambda w: collection_service_pb2.CreateCollectionRequest(),
    "CollectionService/GetCollection": lambda w: collection_service_pb2.GetCollectionRequest(
        collection=w.texts
    ),
    "CollectionService/ListCollections": lambda w: collection_service_pb2.ListCollectionsRequest(),
    "CollectionService/ResealCollection": lambda w: collection_service_pb2.ResealCollectionRequest(
        collection=w.texts
    ),
    "CollectionService/DeleteCollection": lambda w: collection_service_pb2.DeleteCollectionRequest(
        collection=w.texts
    ),
    "CollectionService/ExportCollection": lambda w: collection_service_pb2.ExportCollectionRequest(
        collection=w.vectors
    ),
    "CollectionService/ImportCollection": lambda w: collection_service_pb2.ImportCollectionRequest(
        collection=w.vectors
    ),
    "CollectionService/UpdateCollection": lambda w: collection_service_pb2.UpdateCollectionRequest(
        collection=w.texts, default_ef=100
    ),
    "CollectionService/GetCollectionStats": lambda w: collection_service_pb2.GetCollectionStatsRequest(
        collection=w.texts
    ),
    "DocumentService/UploadDocument": lambda w: document_service_pb2.UploadDocumentRequest(
        header=document_service_pb2.UploadDocumentHeader(collection=w.texts, name="a.txt")
    ),
    "DocumentService/GetDocument": lambda w: document_service_pb2.GetDocumentRequest(
        collection=w.texts, id=w.document
    ),
    "DocumentService/DownloadDocument": lambda w: document_service_pb2.DownloadDocumentRequest(
        collection=w.texts, id=w.document
    ),
    "DocumentService/ListDocuments": lambda w: document_service_pb2.ListDocumentsRequest(collection=w.texts),
    "DocumentService/ResealDocuments": lambda w: document_service_pb2.ResealDocumentsRequest(
        collection=w.texts
    ),
    "DocumentService/DeleteDocument": lambda w: document_service_pb2.DeleteDocumentRequest(
        collection=w.texts, id=w.document
    ),
    "IngestionService/CreateIngestion": lambda w: ingestion_service_pb2.CreateIngestionRequest(
        collection=w.texts, connection_id=w.connection
    ),
    "IngestionService/GetIngestion": lambda w: ingestion_service_pb2.GetIngestionRequest(id=w.ingestion),
    "IngestionService/ListIngestions": lambda w: ingestion_service_pb2.ListIngestionsRequest(),
    "IngestionService/ListFailedItems": lambda w: ingestion_service_pb2.ListFailedItemsRequest(
        id=w.ingestion
    ),
    "IngestionService/WatchIngestion": lambda w: ingestion_service_pb2.WatchIngestionRequest(id=w.ingestion),
    "IngestionService/CancelIngestion": lambda w: ingestion_service_pb2.CancelIngestionRequest(
        id=w.ingestion
    ),
    "IngestionService/RetryIngestion": lambda w: ingestion_service_pb2.RetryIngestionRequest(id=w.ingestion),
    "IngestionService/ResumeIngestion": lambda w: ingestion_service_pb2.ResumeIngestionRequest(
        id=w.ingestion, temporary_token="a token"
    ),
    "SourceService/BeginConnection": lambda w: source_service_pb2.BeginConnectionRequest(kind="web"),
    "SourceService/ListConnections": lambda w: source_service_pb2.ListConnectionsRequest(),
    "SourceService/Disconnect": lambda w: source_service_pb2.DisconnectRequest(connection_id=w.connection),
    "SearchService/Search": lambda w: search_service_pb2.SearchRequest(collection=w.texts, query="seal"),
    "SearchService/SearchBatch": lambda w: search_service_pb2.SearchBatchRequest(
        collection=w.texts, searches=[search_service_pb2.SearchRequest(collection=w.texts, query="seal")]
    ),
    "TokenService/CreateToken": lambda w: token_service_pb2.CreateTokenRequest(label="x"),
    "TokenService/ListTokens": lambda w: token_service_pb2.ListTokensRequest(),
    "TokenService/RotateToken": lambda w: token_service_pb2.RotateTokenRequest(
        id=w.token, overlap=duration_pb2.Duration(seconds=60)
    ),
    "TokenService/RevokeToken": lambda w: token_service_pb2.RevokeTokenRequest(id=w.token),
    "VectorService/Upsert": lambda w: vector_service_pb2.UpsertRequest(
        collection=w.vectors, points=[point(w.point, VECTOR)]
    ),
    "VectorService/UpsertStream": lambda w: vector_service_pb2.UpsertStreamRequest(
        collection=w.vectors, points=[point(w.point, VECTOR)]
    ),
    "VectorService/UpdatePoints": lambda w: vector_service_pb2.UpdatePointsRequest(
        collection=w.vectors, updates=[point_update(w.point, text="x")]
    ),
    "VectorService/GetPoints": lambda w: vector_service_pb2.GetPointsRequest(
        collection=w.vectors, ids=[w.point]
    ),
    "VectorService/ListPoints": lambda w: vector_service_pb2.ListPointsRequest(collection=w.vectors),
    "VectorService/DeletePoints": lambda w: vector_service_pb2.DeletePointsRequest(
        collection=w.vectors, ids=[w.point]
    ),
    "VectorService/CountPoints": lambda w: vector_service_pb2.CountPointsRequest(collection=w.vectors),
    "VectorService/Query": lambda w: vector_service_pb2.QueryRequest(collection=w.vectors, vector=VECTOR),
    "VectorService/QueryBatch": lambda w: vector_service_pb2.QueryBatchRequest(
        collection=w.vectors, queries=[vector_service_pb2.QueryRequest(collection=w.vectors, vector=VECTOR)]
    ),
}
# A new point's id is the caller's own choice, and so are the collections a new token is for.
# The id of an OAuth client is the provider's.
CHOSEN = {
    ("VectorService/Upsert", "points.id"),
    ("VectorService/UpsertStream", "points.id"),
    # The name of a new collection, and ids within it.
    ("CollectionService/ImportCollection", "collection"),
    ("CollectionService/ImportCollection", "frame.points.points.id"),
    ("TokenService/CreateToken", "collections"),
    ("SourceService/BeginConnection", "client.id"),
}


def services() -> list[ServiceDescriptor]:
    """The public services that account tokens reach."""
    return [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]


def response_type(path: str) -> Any:
    service, method = path.split("/")
    for module in MODULES:
        if service in module.DESCRIPTOR.services_by_name:
            found = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
            return getattr(module, found.output_type.name)
    raise KeyError(path)


def kind_of(path: str) -> str:
    service, name = path.split("/")
    for found in services():
        if found.name == service:
            method = found.methods_by_name[name]
            sides = (method.client_streaming, method.server_streaming)
            return "_".join("stream" if streaming else "unary" for streaming in sides)
    raise KeyError(path)


def identifier_fields(message: Descriptor, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Dotted paths of the identifier fields of a request."""
    for field in message.fields:
        if field.name in IDENTIFIERS and field.type == field.TYPE_STRING:
            yield prefix + field.name
        inner = field.message_type
        if inner is not None and inner.file.package == "sealcomb.v1" and inner.name != "Filter" and depth < 2:
            yield from identifier_fields(inner, f"{prefix}{field.name}.", depth + 1)


def with_value(request: Message, path: str, value: str) -> Message:
    """A copy of the request with one identifier replaced."""
    changed = type(request)()
    changed.CopyFrom(request)
    at: Any = changed
    *outer, last = path.split(".")
    for name in outer:
        at = getattr(at, name)
        if not isinstance(at, Message):
            at = at[0]
    if at.DESCRIPTOR.fields_by_name[last].is_repeated:
        at.ClearField(last)
        getattr(at, last).append(value)
    else:
        setattr(at, last, value)
    return changed


def all_cases() -> list[tuple[str, str]]:
    found = []
    for service in services():
        for method in service.methods:
            path = f"{service.name}/{method.name}"
            found += [(path, field) for field in identifier_fields(method.input_type)]
    return [case for case in found if case not in CHOSEN]


@pytest.fixture(scope="module")
def worlds(installation: Installation) -> tuple[World, World]:
    return make_world(installation.new_account()), make_world(installation.new_account())


@pytest.fixture(scope="module")
def raw(worlds: tuple[World, World]) -> Iterator[RawCaller]:
    caller = RawCaller(worlds[0].account.connection)
    yield caller
    caller.close()


def foreign_value(world: World, path: str, field: str) -> str:
    name = field.split(".")[-1]
    if name == "page_token":
        return world.page_tokens[path]
    if name == "collection":
        return world.vectors if path.startswith("VectorService") else world.texts
    if path.startswith("TokenService"):
        return world.token
    if name == "connection_id":
        return world.connection
    if path.startswith("IngestionService"):
        return world.ingestion
    return world.point if path.startswith("VectorService") else world.document


def nonexistent_value(field: str) -> str:
    name = field.split(".")[-1]
    return {"page_token": "x" * 200, "collection": "texts 000000000000"}.get(name, ids.new_id())


def test_every_method_with_an_identifier_has_a_sample_request() -> None:
    assert {path for path, _field in all_cases()} <= set(SAMPLES)
    assert len(all_cases()) >= 30


@pytest.mark.parametrize(("path", "field"), all_cases())
def test_a_foreign_id_answers_like_one_that_does_not_exist(
    raw: RawCaller, worlds: tuple[World, World], path: str, field: str
) -> None:
    """D2, E11: byte for byte, in code, reason, message, fields and body."""
    mine, theirs = worlds
    request = SAMPLES[path](mine)
    answers = [
        raw(f"/sealcomb.v1.{path}", with_value(request, field, value).SerializeToString(), kind=kind_of(path))
        for value in (foreign_value(theirs, path, field), nonexistent_value(field))
    ]
    assert answers[0] == answers[1]
    if field.split(".")[-1] in ("collection", "page_token"):
        assert answers[0].code != "OK"


def test_nothing_of_the_other_account_changed(worlds: tuple[World, World]) -> None:
    """Runs after the matrix: whatever was asked for with foreign ids, the other account still has all."""
    theirs = worlds[1]
    client = theirs.account.client
    assert {c.name for c in client.collections.list()} == {theirs.vectors, theirs.texts}
    assert client.points.count(theirs.vectors) == 2
    assert len(list(client.documents.list(theirs.texts))) == 2
    states = {t.id: t.HasField("revoke_time") for t in client.tokens.list()}
    assert states[theirs.token] is False


def test_an_answer_that_differs_is_noticed(raw: RawCaller, worlds: tuple[World, World]) -> None:
    """The twin: with an id of one's own the same comparison sees a difference."""
    mine, _theirs = worlds
    request = SAMPLES["DocumentService/GetDocument"](mine)
    path = "/sealcomb.v1.DocumentService/GetDocument"
    own = raw(path, request.SerializeToString())
    missing = raw(path, with_value(request, "id", ids.new_id()).SerializeToString())
    assert own.code == "OK"
    assert own != missing


def test_account_methods_are_closed_to_accounts_whatever_the_id(
    raw: RawCaller, worlds: tuple[World, World]
) -> None:
    answers: set[Answer] = set()
    for account_id in (worlds[0].account.id, worlds[1].account.id, ids.new_id()):
        request = account_service_pb2.GetAccountRequest(id=account_id).SerializeToString()
        answers.add(raw("/sealcomb.v1.AccountService/GetAccount", request))
    assert {answer.code for answer in answers} == {"PERMISSION_DENIED"}
    assert len(answers) == 1
