"""The SDK against a real gRPC server: tokens, errors, patience, streams, values."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from sealcomb_client import ApiError, Client, Connection, ConnectionIncomplete
from sealcomb_client.content import point
from sealcomb_client.transport import Timing
from sealcomb_client.values import filter_of, vector_bytes, vector_of
from tests.client.fake_edge import TOKEN, Failure, FakeEdge

UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE)


class FakeTiming:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def timing(self) -> Timing:
        return Timing(lambda: self.now_s, self.sleep, lambda: 0.5)


@pytest.fixture
def time() -> FakeTiming:
    return FakeTiming()


@pytest.fixture
def client(edge: FakeEdge, time: FakeTiming) -> Iterator[Client]:
    with Client(edge.connection, timing=time.timing()) as client:
        yield client


def test_every_call_carries_the_token(edge: FakeEdge, client: Client) -> None:
    client.search("docs", "seals")
    assert edge.tokens == [f"Bearer {TOKEN}"]


def test_a_call_about_a_collection_says_so_in_two_bytes_that_do_not_name_it(
    edge: FakeEdge, client: Client
) -> None:
    for name in ("docs", "docs", "other"):
        client.search(name, "seals")
    list(client.collections.list())
    one, same, other = edge.hints
    assert one == same != other
    assert len(one) == 4
    assert "docs" not in one


def test_a_connection_shows_no_token_in_its_repr() -> None:
    """B3: a token is not part of a repr."""
    shown = repr(Connection("host:1", None, "sealcomb_acc_secret", "sealcomb_op_secret"))
    assert "secret" not in shown


def test_a_call_without_a_token_says_which_setting_is_missing(edge: FakeEdge) -> None:
    with Client(replace(edge.connection, token="")) as client:
        with pytest.raises(ConnectionIncomplete, match="SEALCOMB_TOKEN"):
            client.search("docs", "seals")
        with pytest.raises(ConnectionIncomplete, match="SEALCOMB_OPERATOR_TOKEN"):
            client.accounts.get("a")
        assert client.health()


def test_an_edge_of_another_authority_is_not_spoken_to(edge: FakeEdge, tmp_path: Path) -> None:
    """C11: the client checks the edge's certificate."""
    stranger = edge.connection.ca_file
    assert stranger is not None
    with Client(replace(edge.connection, ca_file=stranger.with_name("ca.pem"))) as client:
        assert not client.health(timeout_s=1.0)
    assert edge.tokens == []


def test_an_error_has_reason_fields_and_request_id(edge: FakeEdge, client: Client) -> None:
    edge.failures.append(
        Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "top_k: too large",
            "INVALID_ARGUMENT",
            (("top_k", "too large"),),
        )
    )
    with pytest.raises(ApiError) as caught:
        client.search("docs", "seals")
    error = caught.value
    assert (error.code, error.reason, error.request_id) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT", "r1")
    assert [(violation.field, violation.description) for violation in error.fields] == [
        ("top_k", "too large")
    ]


def test_a_refusal_for_the_rate_is_obeyed_and_the_call_repeated(
    edge: FakeEdge, client: Client, time: FakeTiming
) -> None:
    refusal = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=1.5)
    edge.failures += [refusal, refusal]
    client.tokens.create("label", ["read"])
    assert time.slept == [1.5, 1.5]
    assert len(edge.requests) == 3


def test_a_refusal_that_asks_for_more_time_than_the_deadline_has_is_raised(
    edge: FakeEdge, client: Client, time: FakeTiming
) -> None:
    edge.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=60.0))
    with pytest.raises(ApiError) as caught:
        client.search("docs", "seals", timeout_s=5.0)
    assert caught.value.retry_after_s == 60.0
    assert time.slept == []


def test_a_limit_without_a_time_is_not_tried_again(edge: FakeEdge, client: Client) -> None:
    edge.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="STORAGE_FULL"))
    with pytest.raises(ApiError, match="STORAGE_FULL"):
        client.points.upsert("docs", [point("a", [1.0])])
    assert len(edge.requests) == 1


def test_a_safe_call_outlasts_a_short_outage_with_growing_pauses(
    edge: FakeEdge, client: Client, time: FakeTiming
) -> None:
    edge.failures += [UNAVAILABLE] * 4
    client.search("docs", "seals")
    assert time.slept == [0.1, 0.2, 0.4, 0.8]


def test_a_call_that_may_have_been_carried_out_is_not_repeated(edge: FakeEdge, client: Client) -> None:
    edge.failures += [UNAVAILABLE]
    with pytest.raises(ApiError) as caught:
        client.tokens.create("label", ["read"])
    assert caught.value.code == "UNAVAILABLE"
    assert len(edge.requests) == 1


def test_an_outage_longer_than_the_deadline_is_raised(
    edge: FakeEdge, client: Client, time: FakeTiming
) -> None:
    edge.failures += [UNAVAILABLE] * 100
    with pytest.raises(ApiError):
        client.search("docs", "seals", timeout_s=5.0)
    assert time.now_s < 5.0


def test_an_upload_is_repeated_whole_and_under_the_same_key(
    edge: FakeEdge, client: Client, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4000
    (tmp_path / "a.pdf").write_bytes(content)
    edge.failures.append(UNAVAILABLE)
    sent: list[int] = []
    document = client.documents.upload(
        "docs", tmp_path / "a.pdf", metadata={"team": "bees"}, sent=sent.append
    )
    assert sent[-1] == max(sent) == len(content)
    assert 0 < sent[1] < len(content)
    assert document.name == "a.pdf"
    assert edge.uploads["a.pdf"] == content
    keys = {header.idempotency_key for header in edge.requests}
    assert len(edge.requests) == 2
    assert len(keys) == 1
    assert keys != {""}


def test_a_download_is_written_and_a_broken_one_raises(client: Client) -> None:
    into = io.BytesIO()
    assert client.documents.download("docs", "d1", into).name == "a.txt"
    assert into.getvalue() == b"one two"
    with pytest.raises(ApiError, match="OPEN_FAILED"):
        client.documents.download("docs", "broken", io.BytesIO())


def test_a_list_goes_through_all_pages(edge: FakeEdge, client: Client) -> None:
    assert [collection.id for collection in client.collections.list()] == ["c0", "c1", "c2"]


def test_vectors_travel_as_little_endian_floats() -> None:
    assert vector_bytes([1.0, -2.5]) == b"\x00\x00\x80\x3f\x00\x00\x20\xc0"
    assert vector_of(vector_bytes([1.0, -2.5])) == [1.0, -2.5]


def test_a_filter_is_written_as_json_and_a_wrong_one_is_refused() -> None:
    made = filter_of(
        {"and": {"filters": [{"range": {"field": "year", "gte": 2020}}, {"exists": {"field": "x"}}]}}
    )
    assert made is not None
    assert getattr(made, "and").filters[0].range.gte == 2020
    with pytest.raises(ValueError, match="not a filter"):
        filter_of({"eqq": {}})


def test_a_wrong_mode_or_metric_is_refused_before_any_call(edge: FakeEdge, client: Client) -> None:
    with pytest.raises(ValueError, match="hybrid"):
        client.search("docs", "seals", mode="magic")
    with pytest.raises(ValueError, match="cosine"):
        client.collections.create("docs", metric="magic")
    assert edge.requests == []


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    path = tmp_path / "client.env"
    path.write_text("# a comment\nexport SEALCOMB_ENDPOINT=file:1\nSEALCOMB_TOKEN='from file'\n")
    connection = Connection.from_env(path, {"SEALCOMB_ENDPOINT": "env:2"})
    assert (connection.endpoint, connection.token, connection.ca_file) == ("env:2", "from file", None)
    with pytest.raises(ConnectionIncomplete, match="cannot be read"):
        Connection.from_env(tmp_path / "none", {})
