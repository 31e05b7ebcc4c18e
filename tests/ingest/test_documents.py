"""DocumentService over real mutual TLS: what goes in comes out, and what fails leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from sealcomb.internal.v1 import keyvault_service_pb2 as kv
from sealcomb.internal.v1 import passage_service_pb2 as ps
from sealcomb.v1 import document_service_pb2 as docs
from sealcomb.v1 import document_service_pb2_grpc as docs_stubs
from services.common import ids
from services.common.clock import SystemClock
from services.common.errors import NotFound, Unavailable
from services.ingest.standing import LEFT_S_MIN
from tests.ingest.rig import (
    ACCOUNT,
    DOWNLOAD,
    OTHER_ACCOUNT,
    UPLOAD,
    Rig,
    details,
    eventually,
    ingest_of,
    refuse,
    running,
)

MIB = 1024 * 1024
PROSE = b"The wax cap seals each cell of the comb.\n\nBees gather nectar in the morning."


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A running ingest with one collection, `notes`."""
    async with running(tmp_path) as made:
        made.collection()
        yield made


def _struct(content: dict[str, Any]) -> Struct:
    return json_format.ParseDict(content, Struct())


def _header(**changes: Any) -> docs.UploadDocumentRequest:
    header = {"collection": "notes", "name": "a.txt"} | changes
    return docs.UploadDocumentRequest(header=docs.UploadDocumentHeader(**header))


def _chunk(content: bytes = PROSE) -> docs.UploadDocumentRequest:
    return docs.UploadDocumentRequest(chunk=content)


async def _refusal(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return (caught.value.code(), *details(caught.value))


async def _receive(rig: Rig, document_id: str, received: bytearray) -> None:
    request = docs.DownloadDocumentRequest(collection="notes", id=document_id)
    async with rig.channel() as channel:
        stub = docs_stubs.DocumentServiceStub(channel)
        async for part in stub.DownloadDocument(request, metadata=rig.metadata(DOWNLOAD)):
            received += part.chunk


async def test_what_is_uploaded_is_described_listed_downloaded_and_deleted(rig: Rig) -> None:
    metadata = _struct({"team": "bees", "year": 2026, "nested": {"a": [True, None]}})
    made = await rig.upload(PROSE, name="Ω notes.txt", metadata=metadata, principals=["ana"])
    assert (made.name, made.content_type, made.size_bytes) == ("Ω notes.txt", "text/plain", len(PROSE))
    assert made.passages >= 1
    assert made.metadata == metadata
    got = await rig.call("GetDocument", docs.GetDocumentRequest(collection="notes", id=made.id))
    assert got.document == made
    listed = await rig.call("ListDocuments", docs.ListDocumentsRequest(collection="notes"))
    assert list(listed.documents) == [made]
    described, content = await rig.download("notes", made.id)
    assert (described, content) == (made, PROSE)
    await rig.call("DeleteDocument", docs.DeleteDocumentRequest(collection="notes", id=made.id))
    assert rig.objects == []
    code, reason, _fields = await _refusal(
        rig.call("GetDocument", docs.GetDocumentRequest(collection="notes", id=made.id))
    )
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "DOCUMENT_NOT_FOUND")


async def test_a_document_of_many_chunks_comes_back_byte_for_byte(rig: Rig) -> None:
    content = b"".join(b"line %d of a long text about bees\n" % number for number in range(20_000))
    made = await rig.upload(content, chunk_bytes=100_003)
    assert made.passages > 100
    assert (await rig.download("notes", made.id))[1] == content


async def test_a_short_upload_is_committed_under_its_own_context(rig: Rig) -> None:
    await rig.upload(PROSE)
    assert rig.vectorstore.put_methods == [""]
    assert rig.keyvault.permits == {}


async def test_an_upload_of_much_or_at_its_contexts_end_is_committed_under_a_permit(rig: Rig) -> None:
    """What may outlive its context in the middle of a commit never goes on under it."""
    # Much to write and little to embed.
    await rig.upload(b"one" + b" " * 5 * MIB + b"other")
    await rig.upload(PROSE, context={"expires_s": SystemClock().now_s() + LEFT_S_MIN - 1})
    assert rig.vectorstore.put_methods == ["ingest", "ingest"]
    await eventually(lambda: list(rig.keyvault.permits.values()) == [False, False])


async def test_a_permit_is_asked_for_while_the_context_still_holds(rig: Rig) -> None:
    async def slow() -> AsyncIterator[docs.UploadDocumentRequest]:
        yield _header()
        # Far past the context, which keyvault no longer takes then.
        await asyncio.sleep(1.6)
        yield _chunk()

    expires_s = SystemClock().now_s() + LEFT_S_MIN + 0.5
    async with rig.channel() as channel:
        metadata = rig.metadata(UPLOAD, expires_s=expires_s)
        await docs_stubs.DocumentServiceStub(channel).UploadDocument(slow(), metadata=metadata)
    assert rig.vectorstore.put_methods == ["ingest"]


async def test_without_permits_an_upload_that_is_late_is_refused(rig: Rig) -> None:
    """The twin: its own context carries it no further."""
    rig.keyvault.suspended.add(ACCOUNT)
    code, reason, _fields = await _refusal(
        rig.upload(PROSE, context={"expires_s": SystemClock().now_s() + LEFT_S_MIN - 1})
    )
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT_SUSPENDED")
    assert rig.objects == []
    await rig.upload(PROSE)


async def test_originals_are_sealed(rig: Rig) -> None:
    """F-like: nothing of a document, its name or its metadata is readable below the service's folder."""
    await rig.upload(PROSE, name="secretname.txt", metadata=_struct({"k": "secretvalue"}))
    for folder in (rig.folder / "objects", rig.folder):
        for path in folder.rglob("*"):
            if path.is_file():
                raw = path.read_bytes()
                assert not [word for word in (b"wax cap", b"secretname", b"secretvalue") if word in raw]


async def test_a_repeated_idempotency_key_returns_the_first_document(rig: Rig) -> None:
    first = await rig.upload(PROSE, idempotency_key="once")
    again = await rig.upload(b"something else", idempotency_key="once")
    assert again == first
    assert len(rig.objects) == 1


async def test_of_two_uploads_with_one_key_at_once_one_document_and_one_original_remain(rig: Rig) -> None:
    made = await asyncio.gather(*(rig.upload(PROSE, idempotency_key="once") for _ in range(6)))
    assert len({document.id for document in made}) == 1
    await eventually(lambda: len(rig.objects) == 1)
    assert (await rig.download("notes", made[0].id))[1] == PROSE


_BAD_UPLOADS: list[tuple[list[docs.UploadDocumentRequest], str, str]] = [
    ([], "INVALID_ARGUMENT", "header"),
    ([_chunk()], "INVALID_ARGUMENT", "header"),
    ([_header(), _header(), _chunk()], "INVALID_ARGUMENT", "header"),
    ([_header(), _chunk(), _header()], "INVALID_ARGUMENT", "header"),
    ([_header(), docs.UploadDocumentRequest()], "INVALID_ARGUMENT", "chunk"),
    ([_header(), _chunk(b"x" * (MIB + 1))], "INVALID_ARGUMENT", "chunk"),
    ([_header()], "DOCUMENT_EMPTY", "chunk"),
    ([_header(), _chunk(b"")], "DOCUMENT_EMPTY", "chunk"),
    ([_header(), _chunk(b" \n\t ")], "DOCUMENT_EMPTY", "chunk"),
    ([_header(collection=""), _chunk()], "INVALID_ARGUMENT", "collection"),
    ([_header(collection="c" * 257), _chunk()], "INVALID_ARGUMENT", "collection"),
    ([_header(name=""), _chunk()], "INVALID_ARGUMENT", "name"),
    ([_header(name="n" * 10_000), _chunk()], "INVALID_ARGUMENT", "name"),
    ([_header(content_type="t" * 256), _chunk()], "INVALID_ARGUMENT", "content_type"),
    ([_header(content_type="image/png"), _chunk()], "UNSUPPORTED_FORMAT", "content_type"),
    ([_header(content_type="application/pdf"), _chunk()], "UNSUPPORTED_FORMAT", "content_type"),
    ([_header(name="a.pdf"), _chunk()], "UNSUPPORTED_FORMAT", "content_type"),
    ([_header(), _chunk(b"\x7fELF\x02\x01\x01\x00\x00")], "UNSUPPORTED_FORMAT", "content_type"),
    ([_header(), _chunk(b"%PDF-1.7\nbroken")], "DOCUMENT_BROKEN", "chunk"),
    ([_header(principals=["p"] * 101), _chunk()], "INVALID_ARGUMENT", "principals"),
    ([_header(principals=["a", ""]), _chunk()], "INVALID_ARGUMENT", "principals[1]"),
    ([_header(idempotency_key="k" * 257), _chunk()], "INVALID_ARGUMENT", "idempotency_key"),
    ([_header(metadata=_struct({"a": "x" * 70_000})), _chunk()], "INVALID_ARGUMENT", "metadata"),
    (
        [_header(metadata=Struct(fields={"n": Value(number_value=float("nan"))})), _chunk()],
        "INVALID_ARGUMENT",
        "metadata",
    ),
]


async def test_bad_uploads_name_their_field_and_leave_nothing(rig: Rig) -> None:
    """The table of bad input, E23 among it."""
    for parts, reason, field in _BAD_UPLOADS:
        code, got_reason, fields = await _refusal(rig.send(parts))
        assert (code, got_reason, fields) == (grpc.StatusCode.INVALID_ARGUMENT, reason, [field])
    assert rig.objects == []
    assert rig.vectorstore.collections[ACCOUNT, "notes"].records == {}
    await eventually(lambda: not any(rig.keyvault.permits.values()))


async def test_metadata_may_be_sixteen_levels_deep_and_no_deeper(rig: Rig) -> None:
    content: dict[str, Any] = {}
    for _ in range(15):
        content = {"d": content}
    await rig.upload(PROSE, metadata=_struct(content))
    code, _reason, fields = await _refusal(rig.upload(PROSE, metadata=_struct({"d": {"d": content}})))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["metadata"])


async def test_missing_and_foreign_collections_and_documents_answer_alike(rig: Rig) -> None:
    """D2-like: a foreign id is answered exactly like one that does not exist."""
    rig.collection("theirs", OTHER_ACCOUNT)
    theirs = await rig.upload(PROSE, collection="theirs", account=OTHER_ACCOUNT)
    answers = set()
    for collection in ("theirs", "nowhere"):
        answers.add(str(await _refusal(rig.upload(PROSE, collection=collection))))
    for document_id in (theirs.id, ids.new_id(), "no id at all"):
        request = docs.GetDocumentRequest(collection="notes", id=document_id)
        answers.add(str(await _refusal(rig.call("GetDocument", request))))
    assert len(answers) == 2


async def test_a_token_for_other_collections_finds_none(rig: Rig) -> None:
    made = await rig.upload(PROSE)
    request = docs.GetDocumentRequest(collection="notes", id=made.id)
    assert (await rig.call("GetDocument", request, collections=("notes",))).document == made
    code, reason, _fields = await _refusal(rig.call("GetDocument", request, collections=("other",)))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")
    code, reason, _fields = await _refusal(rig.upload(PROSE, context={"collections": ("other",)}))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")


async def test_collections_of_other_embedders_and_of_bare_vectors_take_no_documents(rig: Rig) -> None:
    rig.collection("old", fingerprint="other weights")
    rig.collection("vectors", embedder="")
    for name, reason in (("old", "EMBEDDER_MISMATCH"), ("vectors", "NOT_A_TEXT_COLLECTION")):
        code, got, _fields = await _refusal(rig.upload(PROSE, collection=name))
        assert (code, got) == (grpc.StatusCode.FAILED_PRECONDITION, reason)


async def test_an_upload_that_is_cancelled_midway_leaves_nothing(rig: Rig) -> None:
    async def half() -> AsyncIterator[docs.UploadDocumentRequest]:
        yield _header()
        yield _chunk()
        await asyncio.sleep(60)

    async with rig.channel() as channel:
        metadata = rig.metadata(UPLOAD, expires_s=SystemClock().now_s() + LEFT_S_MIN - 1)
        call = docs_stubs.DocumentServiceStub(channel).UploadDocument(half(), metadata=metadata)
        await eventually(lambda: any(rig.keyvault.permits.values()))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await eventually(lambda: not any(rig.keyvault.permits.values()))
    assert rig.objects == []
    assert rig.vectorstore.collections[ACCOUNT, "notes"].records == {}


async def test_a_caller_who_leaves_during_the_commit_does_not_tear_it_apart(rig: Rig) -> None:
    committing, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        committing.set()
        await go_on.wait()

    rig.vectorstore.before_put = wait
    upload = asyncio.create_task(rig.upload(PROSE))
    await committing.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    go_on.set()
    notes = rig.vectorstore.collections[ACCOUNT, "notes"]
    await eventually(lambda: len(notes.records) == 1)
    (document_id,) = notes.records
    assert (await rig.download("notes", document_id))[1] == PROSE


async def test_a_commit_that_is_refused_removes_the_original(rig: Rig) -> None:
    rig.vectorstore.before_put = lambda: refuse(NotFound, "COLLECTION_NOT_FOUND")
    code, reason, _fields = await _refusal(rig.upload(PROSE))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")
    assert rig.objects == []


async def test_a_commit_whose_answer_was_lost_keeps_the_original(rig: Rig) -> None:
    """The record is there although the caller saw an error; its original must be too."""
    rig.vectorstore.after_put = lambda: refuse(Unavailable, "UNAVAILABLE")
    code, _reason, _fields = await _refusal(rig.upload(PROSE, idempotency_key="again"))
    assert code == grpc.StatusCode.UNAVAILABLE
    rig.vectorstore.after_put = None
    made = await rig.upload(PROSE, idempotency_key="again")
    assert (await rig.download("notes", made.id))[1] == PROSE


async def test_uploads_beyond_the_budget_are_told_to_come_back(tmp_path: Path) -> None:
    async with running(
        tmp_path, upload_bytes_in_flight_max=MIB, upload_bytes_in_flight_account_max=MIB
    ) as rig:
        rig.collection()
        code, reason, _fields = await _refusal(rig.upload(b"word " * (MIB // 4)))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOADS_BUSY")
        assert (await rig.upload(PROSE)).passages == 1


async def test_documents_that_are_too_large_or_too_slow_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, document_bytes_max=1024, upload_idle_s_max=0.3) as rig:
        rig.collection()
        code, reason, fields = await _refusal(rig.upload(b"word " * 300))
        assert (code, reason, fields) == (grpc.StatusCode.INVALID_ARGUMENT, "DOCUMENT_TOO_LARGE", ["chunk"])

        async def stalled() -> AsyncIterator[docs.UploadDocumentRequest]:
            yield _header()
            yield _chunk()
            await asyncio.sleep(60)

        async with rig.channel() as channel:
            stub = docs_stubs.DocumentServiceStub(channel)
            code, reason, _fields = await _refusal(
                stub.UploadDocument(stalled(), metadata=rig.metadata(UPLOAD))
            )
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_IDLE")
        assert rig.objects == []


async def test_an_original_that_was_changed_does_not_open(rig: Rig) -> None:
    made = await rig.upload(PROSE * 20)
    path = rig.folder / "objects" / rig.objects[0]
    whole = path.read_bytes()
    for position in (0, 2, 10, 30, 200, len(whole) - 1):
        raw = bytearray(whole)
        raw[position] ^= 1
        path.write_bytes(raw)
        code, reason, _fields = await _refusal(rig.download("notes", made.id))
        assert (code, reason) == (grpc.StatusCode.DATA_LOSS, "OPEN_FAILED")
    path.write_bytes(whole)
    assert (await rig.download("notes", made.id))[1] == PROSE * 20


async def test_a_truncated_missing_or_exchanged_original_gives_no_last_byte(rig: Rig) -> None:
    content = b"".join(b"%d words\n" % number for number in range(8_000))
    made, other = await rig.upload(content), await rig.upload(content)
    paths = {path.name: path for path in (rig.folder / "objects").rglob("*") if path.is_file()}
    whole = paths[made.id].read_bytes()
    for raw in (whole[: len(whole) // 2], paths[other.id].read_bytes(), None):
        if raw is None:
            paths[made.id].unlink()
        else:
            paths[made.id].write_bytes(raw)
        received = bytearray()
        code, reason, _fields = await _refusal(_receive(rig, made.id, received))
        assert (code, reason) == (grpc.StatusCode.DATA_LOSS, "OPEN_FAILED")
        assert len(received) < len(content)


async def test_a_disabled_key_stops_uploads_and_downloads_within_a_second(rig: Rig) -> None:
    """D14-like, with its twin: before the event the cached key still serves."""
    made = await rig.upload(PROSE)
    await eventually(lambda: bool(rig.keyvault.watchers))
    rig.keyvault.disabled.add(ACCOUNT)
    assert (await rig.download("notes", made.id))[1] == PROSE
    rig.keyvault.push(kv.KEY_EVENT_DISABLED, ACCOUNT)
    await asyncio.sleep(0.2)
    for call in (rig.download("notes", made.id), rig.upload(PROSE)):
        code, reason, _fields = await _refusal(call)
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_DISABLED")
    rig.keyvault.disabled.clear()
    rig.keyvault.push(kv.KEY_EVENT_ENABLED, ACCOUNT)
    assert (await rig.download("notes", made.id))[1] == PROSE


async def test_originals_go_with_their_collection_and_with_their_account(rig: Rig) -> None:
    rig.collection("other")
    rig.collection("theirs", OTHER_ACCOUNT)
    await rig.upload(PROSE)
    kept = await rig.upload(PROSE, collection="other")
    await rig.upload(PROSE, collection="theirs", account=OTHER_ACCOUNT)
    await eventually(lambda: bool(rig.keyvault.watchers))
    notes = rig.vectorstore.collections[ACCOUNT, "notes"]
    rig.keyvault.push(kv.KEY_EVENT_RESOURCE_DESTROYED, ACCOUNT, notes.id)
    await eventually(lambda: len(rig.objects) == 2)
    rig.keyvault.push(kv.KEY_EVENT_ACCOUNT_DESTROYED, OTHER_ACCOUNT)
    await eventually(lambda: len(rig.objects) == 1)
    assert (await rig.download("other", kept.id))[1] == PROSE


async def test_pages_are_listed_in_order_and_shrink_where_metadata_is_large(rig: Rig) -> None:
    large = _struct({"text": "x" * 60_000})
    records = rig.vectorstore.collections[ACCOUNT, "notes"].records
    made = [ps.DocumentRecord(id=ids.new_id(), name=f"{n}.txt", metadata=large) for n in range(60)]
    records.update({record.id: record for record in made})
    names: list[str] = []
    token = ""
    while True:
        request = docs.ListDocumentsRequest(collection="notes", page_size=1000, page_token=token)
        page = await rig.call("ListDocuments", request)
        assert page.ByteSize() < 4 * MIB
        names += [document.name for document in page.documents]
        token = page.next_page_token
        if not token:
            break
    assert names == [record.name for record in made]


async def test_a_restart_finds_everything_again(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        rig.collection()
        made = await rig.upload(PROSE)
        async with ingest_of(rig):
            assert (await rig.download("notes", made.id))[1] == PROSE


async def test_only_the_edge_may_call(rig: Rig) -> None:
    """C1: another service's certificate does not open a public method."""
    request = docs.ListDocumentsRequest(collection="notes")
    metadata = rig.metadata("/sealcomb.v1.DocumentService/ListDocuments")
    for peer in ("vectorstore", "keyvault", "ingest", "stranger"):
        async with rig.channel(peer) as channel:
            stub = docs_stubs.DocumentServiceStub(channel)
            code, reason, _fields = await _refusal(stub.ListDocuments(request, metadata=metadata, timeout=5))
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PEER_REFUSED")
