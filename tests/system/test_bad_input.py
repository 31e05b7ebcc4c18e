"""Bad input at the edge: a typed error that names the field, nothing stored, nothing crashed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from sealcomb.v1 import collection_service_pb2, document_service_pb2, search_service_pb2, vector_service_pb2
from sealcomb_client import ApiError
from sealcomb_client.content import point
from tests.system.installation import Account, Installation
from tests.system.raw import Answer, RawCaller

NO_SUCH_FIELD = {"eq": {"field": "colour", "value": "x"}}
NAN = float("nan")
PROGRAM = b"\x7fELF\x02\x01\x01\x00" + bytes(64)
LONG = "x" * 10_000
BAD_TEXT = b"\xff\xfe\xfd"


class Scene:
    """A collection of vectors and one of text, both with something in them."""

    def __init__(self, account: Account) -> None:
        self.client = account.client
        self.vectors = f"vectors {secrets.token_hex(4)}"
        self.texts = f"texts {secrets.token_hex(4)}"
        self.client.collections.create(self.vectors, dimension=4)
        self.client.collections.create(self.texts, embedder="default")
        self.client.points.upsert(self.vectors, [point("kept", [1, 0, 0, 0], metadata={"year": 2026})])
        self.client.documents.upload(self.texts, b"Wax seals honey.", name="kept.txt")

    def state(self) -> tuple[object, ...]:
        """All that a refused call could have changed."""
        return (
            [p.id for p in self.client.points.list(self.vectors)],
            [d.name for d in self.client.documents.list(self.texts)],
            self.client.points.count(self.texts),
            sorted(c.name for c in self.client.collections.list()),
        )


@pytest.fixture(scope="module")
def scene(account: Account) -> Scene:
    return Scene(account)


@pytest.fixture(scope="module")
def raw(account: Account) -> Iterator[RawCaller]:
    caller = RawCaller(account.connection)
    yield caller
    caller.close()


Case = tuple[Callable[[Scene], object], str, str, str]
CASES: dict[str, Case] = {
    "wrong dimension": (
        lambda s: s.client.points.upsert(s.vectors, [point("a", [1, 2, 3])]),
        "INVALID_ARGUMENT", "WRONG_DIMENSION", "points[0].vector_f32",
    ),
    "wrong dimension of a query": (
        lambda s: s.client.points.query(s.vectors, [1, 2, 3]),
        "INVALID_ARGUMENT", "WRONG_DIMENSION", "vector_f32",
    ),
    "not a number": (
        lambda s: s.client.points.upsert(s.vectors, [point("a", [1, 2, 3, 4]), point("b", [1, 2, 3, NAN])]),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "points[1].vector_f32",
    ),
    "infinite": (
        lambda s: s.client.points.query(s.vectors, [1, 2, 3, float("-inf")]),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "vector_f32",
    ),
    "oversized batch": (
        lambda s: s.client.points.upsert(s.vectors, [point(str(n), [1, 2, 3, 4]) for n in range(1001)]),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "points",
    ),
    "the same id twice": (
        lambda s: s.client.points.upsert(s.vectors, [point("a", [1, 2, 3, 4]), point("a", [1, 2, 3, 4])]),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "points[1].id",
    ),
    "long collection name": (
        lambda s: s.client.collections.create(LONG, dimension=4),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "name",
    ),
    "long document name": (
        lambda s: s.client.documents.upload(s.texts, b"text", name=LONG),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "name",
    ),
    "empty document": (
        lambda s: s.client.documents.upload(s.texts, b"", name="empty.txt"),
        "INVALID_ARGUMENT", "DOCUMENT_EMPTY", "chunk",
    ),
    "unsupported document": (
        lambda s: s.client.documents.upload(s.texts, PROGRAM, name="program.exe"),
        "INVALID_ARGUMENT", "UNSUPPORTED_FORMAT", "content_type",
    ),
    "broken document": (
        lambda s: s.client.documents.upload(s.texts, b"%PDF-1.7 and then nothing", name="broken.pdf"),
        "INVALID_ARGUMENT", "DOCUMENT_BROKEN", "chunk",
    ),
    "unknown collection": (
        lambda s: s.client.search("no such thing", "seals"),
        "NOT_FOUND", "COLLECTION_NOT_FOUND", "",
    ),
    "upload to an unknown collection": (
        lambda s: s.client.documents.upload("no such thing", b"text", name="a.txt"),
        "NOT_FOUND", "COLLECTION_NOT_FOUND", "",
    ),
    "filter on a field that is not there": (
        lambda s: s.client.points.query(s.vectors, [1, 2, 3, 4], filter=NO_SUCH_FIELD),
        "INVALID_ARGUMENT", "UNKNOWN_FIELD", "filter",
    ),
    "top_k too large": (
        lambda s: s.client.points.query(s.vectors, [1, 2, 3, 4], top_k=1_000_000),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "top_k",
    ),
    "long query": (
        lambda s: s.client.search(s.texts, LONG),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "query",
    ),
    "empty query": (
        lambda s: s.client.search(s.texts, ""),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "query",
    ),
    "name that is taken": (
        lambda s: s.client.collections.create(s.vectors, dimension=4),
        "ALREADY_EXISTS", "", "",
    ),
    "unknown scope": (
        lambda s: s.client.tokens.create("label", ["everything"]),
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "scopes[0]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name_and_changes_nothing(scene: Scene, name: str) -> None:
    call, code, reason, field = CASES[name]
    before = scene.state()
    with pytest.raises(ApiError) as caught:
        call(scene)
    answer = Answer.of(caught.value)
    assert answer.code == code
    assert not reason or answer.reason == reason
    assert [found for found, _why in answer.fields] == ([field] if field else [])
    assert scene.state() == before


def test_invalid_utf8_is_refused_by_the_name_of_the_field(scene: Scene, raw: RawCaller) -> None:
    before = scene.state()
    requests = {
        "/sealcomb.v1.SearchService/Search": (
            search_service_pb2.SearchRequest(collection="a", query="@@@"),
            "query",
        ),
        "/sealcomb.v1.CollectionService/CreateCollection": (
            collection_service_pb2.CreateCollectionRequest(name="@@@", dimension=4),
            "name",
        ),
        "/sealcomb.v1.VectorService/Upsert": (
            vector_service_pb2.UpsertRequest(
                collection=scene.vectors, points=[vector_service_pb2.Point(id="@@@", vector=[1, 2, 3, 4])]
            ),
            "points[0].id",
        ),
    }
    for path, (request, field) in requests.items():
        answer = raw(path, request.SerializeToString().replace(b"@@@", BAD_TEXT))
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ((field, "is not valid UTF-8"),))
    header = document_service_pb2.UploadDocumentHeader(collection=scene.texts, name="@@@")
    upload = document_service_pb2.UploadDocumentRequest(header=header).SerializeToString()
    path = "/sealcomb.v1.DocumentService/UploadDocument"
    answer = raw(path, upload.replace(b"@@@", BAD_TEXT), kind="stream_unary")
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (("header.name", "is not valid UTF-8"),))
    assert scene.state() == before


def test_an_invalid_page_token_is_refused_everywhere(scene: Scene, raw: RawCaller) -> None:
    requests = {
        "CollectionService/ListCollections": collection_service_pb2.ListCollectionsRequest(page_token="x"),
        "VectorService/ListPoints": vector_service_pb2.ListPointsRequest(
            collection=scene.vectors, page_token="x"
        ),
        "DocumentService/ListDocuments": document_service_pb2.ListDocumentsRequest(
            collection=scene.texts, page_token="x"
        ),
    }
    for path, request in requests.items():
        answer = raw(f"/sealcomb.v1.{path}", request.SerializeToString())
        assert answer.code == "INVALID_ARGUMENT", path
        assert [field for field, _why in answer.fields] == ["page_token"], path


def test_an_oversized_message_is_refused_before_it_is_read(scene: Scene, raw: RawCaller) -> None:
    before = scene.state()
    answer = raw(
        "/sealcomb.v1.VectorService/Upsert", b"\x0a\x03abc\x12\x80\x80\x80\x04" + bytes(8 * 1024 * 1024)
    )
    assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert scene.state() == before


@pytest.mark.parametrize(
    "token", ["", "nonsense", "sealcomb_acc_" + "0" * 70, "sealcomb_acc_\u00e4"[:13] + "x" * 500]
)
def test_an_unknown_or_missing_token_is_unauthenticated(raw: RawCaller, token: str) -> None:
    answer = raw("/sealcomb.v1.CollectionService/ListCollections", b"", token=token)
    assert answer.code == "UNAUTHENTICATED"


def test_a_token_without_the_scope_is_denied(account: Account, raw: RawCaller, scene: Scene) -> None:
    """B14: a reader's token does not write."""
    reader = account.client.tokens.create("reader", ["read"]).token
    listed = raw("/sealcomb.v1.CollectionService/ListCollections", b"", token=reader)
    assert listed.code == "OK"
    request = vector_service_pb2.DeletePointsRequest(
        collection=scene.vectors, ids=["kept"]
    ).SerializeToString()
    answer = raw("/sealcomb.v1.VectorService/DeletePoints", request, token=reader)
    assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
    assert "kept" in [p.id for p in scene.client.points.list(scene.vectors)]


def test_a_token_for_one_collection_sees_no_other(
    account: Account, scene: Scene, installation: Installation
) -> None:
    made = account.client.tokens.create("narrow", ["read"], collections=[scene.vectors]).token
    narrow = installation.client(replace(account.connection, token=made))
    assert narrow.points.count(scene.vectors) == 1
    with pytest.raises(ApiError) as caught:
        narrow.points.count(scene.texts)
    with pytest.raises(ApiError) as missing:
        narrow.points.count("no such thing")
    assert Answer.of(caught.value) == Answer.of(missing.value)
    assert [c.name for c in narrow.collections.list()] == [scene.vectors]


def test_every_service_still_runs(installation: Installation, scene: Scene) -> None:
    """Whatever the tests above sent, no service was started a second time."""
    assert "starting it again" not in installation.output
    assert scene.client.health()
