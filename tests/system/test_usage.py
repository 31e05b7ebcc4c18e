"""What is written is counted, quotas bound it, streams end with their token: the whole installation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from sealcomb.v1 import document_service_pb2 as documents_pb
from sealcomb_client import ApiError
from sealcomb_client.content import point
from services.common.rpc.open_streams import BOUND_S, PERIOD_S
from tests.system.installation import Account, Installation

_TEXT = b"The queen lays up to two thousand eggs a day."


@pytest.fixture
def fresh(installation: Installation) -> Account:
    account = installation.new_account()
    account.client.collections.create("vectors", dimension=2)
    account.client.collections.create("texts", embedder="default")
    return account


def eventually(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_points_documents_and_bytes_are_counted_where_they_are_written(
    installation: Installation, fresh: Account
) -> None:
    fresh.client.points.upsert("vectors", [point(f"p{n}", [1, n]) for n in range(3)])
    fresh.client.documents.upload("texts", _TEXT, name="eggs.txt")
    eventually(lambda: fresh.client.accounts.usage().month.documents == 1)
    (day,) = fresh.client.accounts.usage().days
    assert (day.points, day.documents) == (4, 1)
    assert day.bytes > len(_TEXT)
    assert day.calls >= 5
    seen = installation.client().accounts.usage(fresh.id)
    assert seen.days[0].points == 4


def test_a_quota_of_documents_ends_uploads_and_nothing_else(
    installation: Installation, fresh: Account
) -> None:
    installation.client().accounts.update(fresh.id, quotas={"documents_per_day": 1})
    fresh.client.documents.upload("texts", _TEXT, name="eggs.txt")

    def reason() -> str:
        try:
            fresh.client.documents.upload("texts", _TEXT, name="more.txt")
        except ApiError as error:
            return error.reason
        return ""

    eventually(lambda: bool(reason()))
    assert reason() == "QUOTA_EXCEEDED"
    assert fresh.client.search("texts", "how many eggs?")


def test_an_upload_that_is_open_when_its_token_is_revoked_ends(
    installation: Installation, fresh: Account
) -> None:
    """B6: the services ask the gateway, which knows at once."""
    made = fresh.client.tokens.create("uploader", ["write"])
    stop = threading.Event()

    def messages() -> Iterator[documents_pb.UploadDocumentRequest]:
        header = documents_pb.UploadDocumentHeader(collection="texts", name="endless.txt")
        yield documents_pb.UploadDocumentRequest(header=header)
        while not stop.wait(1.0):
            yield documents_pb.UploadDocumentRequest(chunk=b"bees ")

    assert fresh.connection.ca_file is not None
    credentials = grpc.ssl_channel_credentials(fresh.connection.ca_file.read_bytes())
    with grpc.secure_channel(fresh.connection.endpoint, credentials) as channel:
        upload: Any = channel.stream_unary(
            "/sealcomb.v1.DocumentService/UploadDocument",
            request_serializer=documents_pb.UploadDocumentRequest.SerializeToString,
        ).future(messages(), metadata=(("authorization", f"Bearer {made.token}"),), timeout=120)
        time.sleep(1.5)
        assert not upload.done()
        fresh.client.tokens.revoke(made.info.id)
        began_s = time.monotonic()
        error = upload.exception(timeout=120)
        stop.set()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert time.monotonic() - began_s < BOUND_S + PERIOD_S
