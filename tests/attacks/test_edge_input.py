"""A10, A12, A18: what clients put into headers and messages: refused, cheap, and nobody else's matter."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import h2.exceptions
import hpack
import pytest

from tests.attacks.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Attacker,
    attacker,
    call_headers,
    frame,
)
from tests.gateway.load import QUERY, Kind, load
from tests.gateway.raw_http2 import EMPTY_MESSAGE, Reply, grpc_headers, raw_connection
from tests.gateway.rig import Answer, Edge, call, running_edge
from tests.gateway.weakened import Json, routes, weakened

WHO_AM_I = "/sealcomb.v1.TokenService/WhoAmI"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("input")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account("mallory").token


@pytest.fixture(autouse=True, scope="module")
def neighbour(edge: Edge) -> Iterator[None]:
    """Another account's calls, through all of these tests."""
    with load(edge, Kind(edge.create_account("a neighbour").token, callers=1, connections=1)) as outcome:
        yield
    assert not outcome.failures, outcome.details
    assert outcome.good > 50


@contextmanager
def nothing_reaches_a_service(edge: Edge) -> Iterator[None]:
    """Fails if a call reached a service within the block that is not the neighbour's, whose body is empty."""
    before = len(edge.backends.seen)
    yield
    assert not [one for one in edge.backends.seen[before:] if one.body]


MARK = b"\x0a\x04mine"
MARKED = len(MARK).to_bytes(5, "big") + MARK


def replied(edge: Edge, headers: list[tuple[str, str]]) -> Reply:
    """What came back for a call with these headers, on a connection of its own."""
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        try:
            return connection.reply(connection.send(headers, MARKED))
        except h2.exceptions.H2Error:
            return Reply(closed=True)


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer  {}", "Bearer {}\0", "Bearer \0{}", "Basic {}", "{}",
     "Bearer {},Bearer {}", "Bearer \xe9{}", "Bearer \u202e{}", "Bearer\t{}", "bearer{}"],
)  # fmt: skip
def test_no_odd_authorization_is_a_way_in(edge: Edge, token: str, value: str) -> None:
    """B15: refused as unauthenticated, or with the connection where HTTP/2 forbids the value."""
    with nothing_reaches_a_service(edge):
        reply = replied(edge, [*grpc_headers(QUERY), ("authorization", value.replace("{}", token))])
        assert reply.grpc_status == "16" or reply.reset is not None or reply.closed
        assert token not in str(reply)


def test_two_authorization_headers_are_none(edge: Edge, token: str) -> None:
    with nothing_reaches_a_service(edge):
        for other in (f"Bearer {token}", "x", "Bearer x"):
            for pair in ((f"Bearer {token}", other), (other, f"Bearer {token}")):
                given = [("authorization", value) for value in pair]
                assert replied(edge, [*grpc_headers(QUERY), *given]).grpc_status == "16"


def test_an_authorization_of_ten_megabytes_ends_the_connection(edge: Edge) -> None:
    with attacker(edge.port, edge.installation.edge_ca_file) as one:
        headers = call_headers(QUERY, "a" * 10_000_000)
        block = bytes(hpack.Encoder().encode(headers, huffman=False))
        one.send(frame(HEADERS, END_STREAM, 1, block[:16384]))
        for start in range(16384, len(block), 16384):
            last = start + 16384 >= len(block)
            one.send(frame(CONTINUATION, END_HEADERS * last, 1, block[start : start + 16384]))
        assert one.wait(10)
        assert one.sent_bytes < 10_000_000


@pytest.mark.parametrize(
    "timeout", ["", "0n", "1", "-1S", "1e9S", "999999999S", "99999999H", "abc", "1 S", "1s", "S", "1S1S"]
)
def test_an_absurd_timeout_holds_nothing(edge: Edge, token: str, timeout: str) -> None:
    """A18: the call is answered, refused or ends as too late, at once."""
    reply = replied(edge, grpc_headers(QUERY, ("grpc-timeout", timeout), token=token))
    assert reply.grpc_status in ("0", "3", "4", "13") or reply.reset is not None, reply
    assert edge.backends.held == 0


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/grpcfoo", "application/x-www-form-urlencoded", ""]
)
def test_another_content_type_reaches_nothing(edge: Edge, token: str, kind: str) -> None:
    with nothing_reaches_a_service(edge):
        headers = [pair for pair in grpc_headers(QUERY, token=token) if pair[0] != "content-type"]
        for given in ([*headers, ("content-type", kind)], headers):
            reply = replied(edge, given)
            assert reply.http_status in ("404", "415") or reply.grpc_status == "12", reply


def compressed(edge: Edge, token: str, path: str, size: int) -> Answer:
    """A call whose message is so many zeros, sent as gzip."""
    credentials = grpc.ssl_channel_credentials(edge.installation.edge_ca_file.read_bytes())
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with grpc.secure_channel(
        f"127.0.0.1:{edge.port}", credentials, options=options, compression=grpc.Compression.Gzip
    ) as channel:
        return call(channel, path, token, bytes(size))


def test_a_compressed_message_is_refused_however_it_is_packed(edge: Edge, token: str) -> None:
    """A12: a bomb of 32 MiB in 32 KB, and a harmless one, never reach a service."""
    with nothing_reaches_a_service(edge):
        for path in (QUERY, WHO_AM_I, "/sealcomb.v1.DocumentService/UploadDocument"):
            for size in (32 << 20, 1000):
                answer = compressed(edge, token, path, size)
                expected = (grpc.StatusCode.UNIMPLEMENTED, "COMPRESSION_REFUSED")
                assert (answer.code, answer.reason) == expected
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP", "identity, gzip", "x" * 1000):
        assert (
            replied(edge, grpc_headers(QUERY, ("grpc-encoding", encoding), token=token)).grpc_status == "12"
        )
    assert replied(edge, grpc_headers(QUERY, ("grpc-encoding", "identity"), token=token)).grpc_status == "0"


def test_without_the_refusal_a_service_unpacks_the_bomb(edge: Edge, token: str) -> None:
    """Twin of the test above: a thousand times what was sent, below the limits of size at the edge."""

    def weaken(config: Json) -> None:
        routes(config)[:] = [one for one in routes(config) if one.get("direct_response") != {"status": 415}]

    with weakened(edge, weaken) as twin:
        before = len(edge.backends.seen)
        assert compressed(twin, token, QUERY, 32 << 20).code is grpc.StatusCode.OK
        assert max(len(one.body) for one in edge.backends.seen[before:]) == 32 << 20


def test_a_hidden_compressed_message_is_no_way_around(edge: Edge, token: str) -> None:
    """A12: the flag of compression without the header that names its kind."""
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        body = b"\x01" + struct.pack(">I", 4) + b"\x1f\x8b\x08\x00"
        reply = connection.reply(connection.send(grpc_headers(QUERY, token=token), body))
    assert reply.grpc_status in ("12", "13"), reply


_POISONS = (
    b"\xff\xff\xff\xff\x0f",
    b"\x3f\xe1\xff\xff\xff\x0f",
    b"\x3f\x00" * 50,
    b"\xbe",
    b"\x80",
    b"\x40\x00\x00",
    b"\x40\x82\xff\xff\x01a",
    bytes(hpack.Encoder().encode([("x-poison", "b" * 4000)])),
    bytes(hpack.Encoder().encode([("connection", "close"), ("transfer-encoding", "chunked")])),
)


def poison(edge: Edge, token: str, block: bytes) -> None:
    """A header block that would leave a shared table of headers in disorder, if anything shared one."""
    for _ in range(2):
        with attacker(edge.port, edge.installation.edge_ca_file) as one:
            one.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, _good_block(one, token)))
            one.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, block))
            one.sync(5)


def _good_block(one: Attacker, token: str) -> bytes:
    return one.block([*call_headers(QUERY, token), ("user-agent", "mallory")])


def test_a_poisoned_table_is_the_attackers_own(edge: Edge, token: str) -> None:
    """A10: all share one connection to the service, and no call of another sees or suffers anything."""
    bystander = edge.create_account("a bystander")
    before = len(edge.backends.seen)
    with ThreadPoolExecutor(len(_POISONS)) as pool, edge.channel() as channel:
        attacks = [pool.submit(poison, edge, token, block) for block in _POISONS]
        answers = 0
        while not all(one.done() for one in attacks) or answers < 50:
            assert call(channel, QUERY, bystander.token).code is grpc.StatusCode.OK
            answers += 1
        for one in attacks:
            one.result()
    mine = [one for one in edge.backends.seen[before:] if one.account == bystander.account.id]
    assert len(mine) == answers
    assert not [one for one in mine if foreign(one.metadata)]


def test_a_header_of_another_would_be_seen(edge: Edge) -> None:
    """Twin of the test above, whose control is that the edge writes every header block anew: no switch
    turns that off, so this shows that the look at the headers notices one of the attacker's."""
    bystander = edge.create_account("a bystander")
    before = len(edge.backends.seen)
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        headers = grpc_headers(QUERY, ("user-agent", "mallory"), token=bystander.token)
        connection.reply(connection.send(headers, EMPTY_MESSAGE))
    mine = [one for one in edge.backends.seen[before:] if one.account == bystander.account.id]
    assert [one for one in mine if foreign(one.metadata)]


def foreign(metadata: list[tuple[str, Any]]) -> bool:
    return any("mallory" in str(value) or "poison" in name for name, value in metadata)


def test_a_bearer_in_order_still_works(edge: Edge, token: str) -> None:
    """So that the refusals above say something."""
    assert edge.call(QUERY, token, MARK).code is grpc.StatusCode.OK
    assert replied(edge, grpc_headers(QUERY, token=token)).grpc_status == "0"
