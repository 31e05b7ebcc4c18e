"""A service killed in the middle of an upload: the upload ends well, or fails so that a repeat may follow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import pytest

from sealcomb.v1 import document_service_pb2, document_service_pb2_grpc
from tests.system.installation import Account, Installation, running


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with running(tmp_path_factory.mktemp("restart")) as installation:
        yield installation


@pytest.fixture(scope="module")
def account(installation: Installation) -> Account:
    account = installation.new_account()
    account.client.collections.create("texts", embedder="default")
    # The first upload opens every connection; the ones that are cut must be past that when the kill comes.
    account.client.documents.upload("texts", b"All connections are open.", name="first.txt")
    return account


def upload_across_a_kill(installation: Installation, account: Account, service: str) -> str:
    """The id of a document whose second half is sent after the service was killed and is back."""

    def parts() -> Iterator[document_service_pb2.UploadDocumentRequest]:
        header = document_service_pb2.UploadDocumentHeader(collection="texts", name=f"{service}.txt")
        yield document_service_pb2.UploadDocumentRequest(header=header)
        yield document_service_pb2.UploadDocumentRequest(chunk=b"The first half is sealed. ")
        time.sleep(2.0)
        os.kill(installation.pid_of(service), signal.SIGKILL)
        time.sleep(0.3)
        installation.wait_serving()
        # Connections between services are tried again after at most a second.
        time.sleep(2.0)
        yield document_service_pb2.UploadDocumentRequest(chunk=b"The second half comes late.")

    connection = account.connection
    assert connection.ca_file is not None
    credentials = grpc.ssl_channel_credentials(connection.ca_file.read_bytes())
    with grpc.secure_channel(connection.endpoint, credentials) as channel:
        stub = document_service_pb2_grpc.DocumentServiceStub(channel)
        metadata = (("authorization", f"Bearer {connection.token}"),)
        return stub.UploadDocument(parts(), metadata=metadata, timeout=60).document.id


@pytest.mark.parametrize("service", ["vectorstore", "keyvault"])
def test_an_upload_goes_on_when_a_service_behind_it_was_started_anew(
    installation: Installation, account: Account, service: str
) -> None:
    """The restarted vectorstore has no data key left and fetches it under the upload's permit."""
    document_id = upload_across_a_kill(installation, account, service)
    hits = account.client.search("texts", "second half late", mode="lexical")
    assert document_id in {hit.document_id for hit in hits}


def test_an_upload_into_a_killed_ingest_fails_as_unavailable_and_leaves_no_document(
    installation: Installation, account: Account
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        upload_across_a_kill(installation, account, "ingest")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "ingest.txt" not in {document.name for document in account.client.documents.list("texts")}
