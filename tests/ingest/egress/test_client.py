"""E3, E4, E14, E15, E16, E18: the one way out against hostile servers and names, attacks with twins."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import resource
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpcore
import httpx
import pytest

from services.common.errors import SealcombError
from services.ingest.egress.client import Egress, EgressLimits
from services.ingest.egress.httpx_transport import EgressTransport
from services.ingest.egress.network import CheckedNetwork, open_tls
from services.ingest.egress.refusals import AnswerTooLarge, EgressRefused, EgressUnavailable
from services.ingest.egress.resolver import SystemResolver
from services.ingest.egress.target import HostRules
from tests.ingest.sources.servers.https import (
    LOOPBACK,
    FixedResolver,
    Handler,
    HttpsServer,
    Reply,
    Request,
    Tls,
    make_tls,
    open_egress,
)

TOKEN = "Bearer canary-token"
METADATA = bytes([169, 254, 169, 254])
NAMES = ("good.test", "other.test", "rebind.test")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"), NAMES)


@contextlib.asynccontextmanager
async def two_servers(
    tls: Tls, first: Handler, *, limits: EgressLimits | None = None
) -> AsyncIterator[tuple[Egress, HttpsServer, HttpsServer]]:
    """good.test answers as told; other.test takes whatever comes."""
    good = HttpsServer(first, tls.server)
    other = HttpsServer(lambda _: Reply(200, {}, b"stolen"), tls.server)
    async with good.running(), other.running():
        allowed = ",".join(f"{name}:{server.port}" for name in NAMES for server in (good, other))
        egress = open_egress(tls, allowed, limits=limits)
        try:
            yield egress, good, other
        finally:
            await egress.close()


def answering(content: bytes = b"hello", **headers: str) -> Handler:
    return lambda _: Reply(200, {name.replace("_", "-"): value for name, value in headers.items()}, content)


async def test_a_plain_request_reaches_its_host_under_its_name(tls: Tls) -> None:
    async with two_servers(tls, answering()) as (egress, good, _):
        netloc = f"good.test:{good.port}"
        answer = await egress.send(
            "GET", f"https://{netloc}/a?b=c", authorization=TOKEN, authorized_hosts=(netloc,)
        )
    assert (answer.status, answer.content) == (200, b"hello")
    assert good.requests[0].headers["host"] == netloc
    assert good.requests[0].headers["authorization"] == TOKEN
    assert good.requests[0].target == "/a?b=c"
    assert "hello" not in repr(answer)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_carries_the_token_to_another_origin(tls: Tls, status: int) -> None:
    target = {"port": 0}
    elsewhere: Handler = lambda _: Reply(status, {"location": f"https://other.test:{target['port']}/take"})  # noqa: E731
    async with two_servers(tls, elsewhere) as (egress, good, other):
        target["port"] = other.port
        await egress.send(
            "GET",
            f"https://good.test:{good.port}/",
            headers={"x-amz-security-token": "canary", "accept": "text/html"},
            authorization=TOKEN,
            # Even where the other host is one of the source's own.
            authorized_hosts=(f"good.test:{good.port}", f"other.test:{other.port}"),
        )
    assert len(other.requests) == 1
    assert "canary" not in str(other.requests)
    assert other.requests[0].headers["accept"] == "text/html"


async def test_a_client_that_keeps_headers_would_have_given_the_token_away(tls: Tls) -> None:
    """Twin: the same redirect, followed by hand with the same headers."""
    async with (
        two_servers(tls, answering()) as (_, _, other),
        httpx.AsyncClient(verify=tls.client, trust_env=False) as careless,
    ):
        await careless.get(f"https://127.0.0.1:{other.port}/take", headers={"authorization": TOKEN})
    assert other.requests[0].headers["authorization"] == TOKEN


async def test_the_same_host_on_another_port_is_another_origin(tls: Tls) -> None:
    target = {"port": 0}
    moved: Handler = lambda _: Reply(302, {"location": f"https://good.test:{target['port']}/"})  # noqa: E731
    async with two_servers(tls, moved) as (egress, good, other):
        target["port"] = other.port
        await egress.send(
            "GET",
            f"https://good.test:{good.port}/",
            authorization=TOKEN,
            authorized_hosts=(f"good.test:{good.port}",),
        )
    assert "authorization" not in other.requests[0].headers


async def test_a_redirect_back_does_not_bring_the_token_back(tls: Tls) -> None:
    ports = {"good": 0, "other": 0}

    def first(request: Request) -> Reply:
        if request.path == "/start":
            return Reply(302, {"location": f"https://other.test:{ports['other']}/"})
        return Reply(200)

    async with two_servers(tls, first) as (egress, good, other):
        ports.update(good=good.port, other=other.port)
        other.handler = lambda _: Reply(302, {"location": f"https://good.test:{good.port}/end"})
        netloc = f"good.test:{good.port}"
        await egress.send("GET", f"https://{netloc}/start", authorization=TOKEN, authorized_hosts=(netloc,))
    assert [r.path for r in good.requests] == ["/start", "/end"]
    assert "authorization" not in good.requests[1].headers


async def test_a_redirect_on_the_same_origin_keeps_the_token(tls: Tls) -> None:
    def moved(request: Request) -> Reply:
        return Reply(200) if request.path == "/new" else Reply(301, {"location": "/new"})

    async with two_servers(tls, moved) as (egress, good, _):
        netloc = f"good.test:{good.port}"
        answer = await egress.send(
            "GET", f"https://{netloc}/old", authorization=TOKEN, authorized_hosts=(netloc,)
        )
    assert answer.url.endswith("/new")
    assert [request.headers["authorization"] for request in good.requests] == [TOKEN, TOKEN]


async def test_a_token_is_never_sent_to_a_first_address_outside_its_hosts(tls: Tls) -> None:
    async with two_servers(tls, answering()) as (egress, _, other):
        with pytest.raises(EgressRefused, match="credential"):
            await egress.send(
                "GET",
                f"https://other.test:{other.port}/",
                authorization=TOKEN,
                authorized_hosts=("good.test",),
            )
    assert other.requests == []


@pytest.mark.parametrize("header", ["refresh", "alt-svc", "content-location", "link"])
async def test_no_other_header_moves_a_request(tls: Tls, header: str) -> None:
    async with two_servers(tls, lambda _: Reply(200, {header: "0; url=https://other.test/"})) as (
        egress,
        good,
        other,
    ):
        await egress.send("GET", f"https://good.test:{good.port}/")
    assert other.requests == []


async def test_a_post_is_not_redirected(tls: Tls) -> None:
    async with two_servers(tls, lambda _: Reply(307, {"location": "/again"})) as (egress, good, _):
        answer = await egress.send("POST", f"https://good.test:{good.port}/", content=b"secret")
    assert answer.status == 307
    assert len(good.requests) == 1


@pytest.mark.parametrize(
    "location",
    ["https://169.254.169.254/latest/meta-data/", "http://good.test/", "https://127.0.0.1/", "https://[::1]/",
     "https://0x7f.1/", "https://2130706433/", "https://[::ffff:169.254.169.254]/", "https://10.0.0.1/",
     "file:///etc/passwd", "gopher://good.test/", "https://user@good.test/", "https://good.test:22/",
     "https://good.test\\@169.254.169.254/", "https://[fe80::1%25lo]/", "https://[64:ff9b::a9fe:a9fe]/"],
)  # fmt: skip
async def test_a_redirect_to_where_requests_do_not_go_is_refused(tls: Tls, location: str) -> None:
    async with two_servers(tls, lambda _: Reply(302, {"location": location})) as (egress, good, _):
        with pytest.raises(EgressRefused):
            await egress.send("GET", f"https://good.test:{good.port}/")
    assert len(good.requests) == 1


async def test_redirects_end_after_five(tls: Tls) -> None:
    counter = itertools.count()
    async with two_servers(tls, lambda _: Reply(302, {"location": f"/{next(counter)}"})) as (egress, good, _):
        with pytest.raises(EgressRefused, match="more than 5"):
            await egress.send("GET", f"https://good.test:{good.port}/")
    assert len(good.requests) == 6


@pytest.mark.parametrize(
    ("headers", "authorization"),
    [
        ({"x-a": "b\r\nx-c: d"}, ""),
        ({"x-a\r\nx-c": "d"}, ""),
        ({"x-a": "b\nc"}, ""),
        ({"x-a": "\u0130"}, ""),
        ({"authorization": "mine"}, ""),
        ({"Host": "evil"}, ""),
        ({}, "Bearer a\r\nx-c: d"),
        ({}, "Bearer a\x00"),
        ({}, "Bearer a\u2028b"),
    ],
)
async def test_a_header_cannot_end_its_line(tls: Tls, headers: dict[str, str], authorization: str) -> None:
    async with two_servers(tls, answering()) as (egress, good, _):
        netloc = f"good.test:{good.port}"
        with pytest.raises(EgressRefused):
            await egress.send(
                "GET",
                f"https://{netloc}/",
                headers=headers,
                authorization=authorization,
                authorized_hosts=(netloc,),
            )
    assert good.requests == []


class Recording(httpcore.AsyncNetworkBackend):
    """Where connections would have gone; opens none."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def connect_tcp(
        self, host: str, port: int, *_: object, **__: object
    ) -> httpcore.AsyncNetworkStream:
        self.reached.append(host)
        raise httpcore.ConnectError("recorded")


class Alternating:
    """A name server that answers public, then private: what rebinding is."""

    def __init__(self, answers: Sequence[Sequence[bytes]]) -> None:
        self._answers = itertools.cycle(answers)
        self.asked = 0

    async def resolve(self, host: str) -> Sequence[bytes]:
        self.asked += 1
        return next(self._answers)


PUBLIC = bytes([93, 184, 216, 34])


async def test_rebinding_never_reaches_an_inner_address_in_ten_thousand_fetches() -> None:
    """E15."""
    backend = Recording()
    resolver = Alternating([(PUBLIC,), (METADATA,), (LOOPBACK,)])
    network = CheckedNetwork(HostRules(), resolver, backend=backend)
    for _ in range(10_000):
        with pytest.raises((EgressRefused, httpcore.ConnectError)):
            await network.connect_tcp("rebind.test", 443)
    assert set(backend.reached) == {"93.184.216.34"}
    # One look-up for each connection: what was checked is what is connected to.
    assert resolver.asked == 10_000


async def test_a_check_apart_from_the_connection_is_rebound() -> None:
    """Twin: check first, look up again to connect, as clients do that check a URL."""
    resolver = Alternating([(PUBLIC,), (METADATA,)])
    checked = await CheckedNetwork(HostRules(), resolver).checked_addresses("rebind.test", 443)
    connected = await resolver.resolve("rebind.test")
    assert (list(checked), list(connected)) == ([PUBLIC], [METADATA])


@pytest.mark.parametrize("bad", [METADATA, LOOPBACK, bytes(15) + b"\1", bytes(10) + b"\xff\xff" + METADATA])
async def test_one_inner_address_condemns_a_mixed_answer(bad: bytes) -> None:
    for answer in ((PUBLIC, bad), (bad, PUBLIC)):
        backend = Recording()
        network = CheckedNetwork(HostRules(), FixedResolver({"mixed.test": answer}), backend=backend)
        with pytest.raises(EgressRefused, match=r"mixed\.test"):
            await network.connect_tcp("mixed.test", 443)
        assert backend.reached == []


async def test_an_allowed_host_may_be_private_but_never_metadata() -> None:
    rules = HostRules.parse("minio.test:443")
    resolver = FixedResolver({"minio.test": (bytes([10, 0, 0, 9]),)})
    backend = Recording()
    network = CheckedNetwork(rules, resolver, backend=backend)
    with pytest.raises(httpcore.ConnectError):
        await network.connect_tcp("minio.test", 443)
    assert backend.reached == ["10.0.0.9"]
    resolver.answers["minio.test"] = (METADATA,)
    with pytest.raises(EgressRefused):
        await network.connect_tcp("minio.test", 443)
    with pytest.raises(EgressRefused):
        await network.connect_unix_socket("/run/any.sock")


async def test_the_machines_own_resolver_gives_checked_addresses_alone() -> None:
    network = CheckedNetwork(HostRules(), SystemResolver(), backend=Recording())
    with pytest.raises(EgressRefused):
        await network.connect_tcp("localhost", 443)


async def test_a_certificate_of_another_name_or_authority_is_no_connection(tls: Tls, tmp_path: Path) -> None:
    async with two_servers(tls, answering()) as (_, good, _):
        allowed = f"good.test:{good.port},wrong.test:{good.port}"
        stranger = Egress(HostRules.parse(allowed), resolver=FixedResolver(), tls=open_tls())
        known = open_egress(tls, allowed)
        try:
            with pytest.raises(EgressUnavailable):
                await stranger.send("GET", f"https://good.test:{good.port}/")
            with pytest.raises(EgressUnavailable):
                await known.send("GET", f"https://wrong.test:{good.port}/")
            assert (await known.send("GET", f"https://good.test:{good.port}/")).status == 200
        finally:
            await stranger.close()
            await known.close()


async def test_session_keys_and_proxies_of_the_environment_are_not_used(
    tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    fresh = Tls(
        tls.server, open_tls(str(tls.ca_file)), tls.certificate_file, tls.key_file, tls.ca_file, tls.ca
    )
    async with two_servers(fresh, answering()) as (egress, good, _):
        assert (await egress.send("GET", f"https://good.test:{good.port}/")).status == 200
    assert not keys.exists()


def endless(chunk: bytes) -> Handler:
    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        while True:
            writer.write(chunk)
            await writer.drain()

    return lambda _: Reply(stream=stream)


def dripping(first: bytes, drop: bytes, every_s: float) -> Handler:
    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(every_s)

    return lambda _: Reply(stream=stream)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(1 << 28))
ZLIB_BOMB = zlib.compress(bytes(1 << 28))
CUT = gzip.compress(b"x" * 999)[:-9]
SMALL = EgressLimits(body_bytes_max=1 << 20, timeout_s=1.0)


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        pytest.param(endless(b"x" * 65536), AnswerTooLarge, id="endless body"),
        pytest.param(answering(b"x" * (1 << 20) + b"y"), AnswerTooLarge, id="announced too large"),
        pytest.param(answering(BOMB, content_encoding="gzip"), AnswerTooLarge, id="bomb"),
        pytest.param(answering(ZLIB_BOMB, content_encoding="deflate"), AnswerTooLarge, id="zlib"),
        pytest.param(answering(b"not gzip", content_encoding="gzip"), EgressUnavailable, id="broken gzip"),
        pytest.param(answering(CUT, content_encoding="gzip"), EgressUnavailable, id="cut"),
        pytest.param(answering(b"x", content_encoding="br"), EgressUnavailable, id="other encoding"),
        pytest.param(answering(b"x", content_encoding="gzip, gzip"), EgressUnavailable, id="twice"),
        pytest.param(lambda _: Reply(200, {}, b"x", truncate=True), EgressUnavailable, id="truncated"),
        pytest.param(lambda _: Reply(delay_s=30), EgressUnavailable, id="silent"),
        pytest.param(dripping(OK + b"\r\n", b"x", 0.05), EgressUnavailable, id="dripping body"),
        pytest.param(dripping(OK, b"x-a: b\r\n", 0.05), EgressUnavailable, id="dripping head"),
        pytest.param(dripping(b"", CONTINUE, 0.02), EgressUnavailable, id="endless 100"),
        pytest.param(dripping(OK + b"x-a: " + b"b" * 300_000, b"", 1), AnswerTooLarge, id="huge header"),
        pytest.param(dripping(OK + b"x-a: b\r\n" * 30_000, b"", 1), AnswerTooLarge, id="many headers"),
        pytest.param(dripping(b"GARBAGE\r\n\r\n", b"", 1), EgressUnavailable, id="no http"),
    ],
)  # fmt: skip
async def test_a_hostile_answer_ends_within_limits(
    tls: Tls, handler: Handler, error: type[SealcombError]
) -> None:
    async with two_servers(tls, handler, limits=SMALL) as (egress, good, _):
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started_s = time.monotonic()
        with pytest.raises(error) as caught:
            await egress.send(
                "GET", f"https://good.test:{good.port}/secret-path", headers={"x-key": "canary"}
            )
        assert time.monotonic() - started_s < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024
    assert "secret-path" not in str(caught.value)
    assert "canary" not in str(caught.value)


async def test_without_the_limits_the_same_answers_are_taken(tls: Tls) -> None:
    """Twin: what the limits refuse is otherwise a good answer."""
    wide = EgressLimits(body_bytes_max=8 << 20, timeout_s=20)
    cases: list[tuple[Handler, int]] = [
        (answering(b"x" * (1 << 20) + b"y"), (1 << 20) + 1),
        (answering(gzip.compress(bytes(1 << 20)), content_encoding="gzip"), 1 << 20),
    ]
    for handler, size in cases:
        async with two_servers(tls, handler, limits=wide) as (egress, good, _):
            answer = await egress.send("GET", f"https://good.test:{good.port}/")
        assert len(answer.content) == size


async def test_a_broken_off_connection_leaves_the_pool_usable(tls: Tls) -> None:
    async with two_servers(tls, answering(), limits=SMALL) as (egress, good, _):
        url = f"https://good.test:{good.port}/"
        good.faults = [Reply(200, {}, b"x", truncate=True) for _ in range(70)]
        for _ in range(70):
            with pytest.raises(EgressUnavailable):
                await egress.send("GET", url)
        assert (await egress.send("GET", url)).content == b"hello"


async def test_libraries_with_their_own_client_are_bound_to_the_providers_hosts(tls: Tls) -> None:
    async with two_servers(tls, lambda _: Reply(302, {"location": "https://other.test/"}, b"")) as (
        egress,
        good,
        other,
    ):
        netloc = f"good.test:{good.port}"
        async with httpx.AsyncClient(
            transport=EgressTransport(egress, (netloc,)), follow_redirects=True
        ) as client:
            with pytest.raises(EgressRefused):
                await client.post(f"https://{netloc}/token", data={"client_secret": "canary"})
            with pytest.raises(EgressRefused):
                await client.post(f"https://other.test:{other.port}/token", data={"client_secret": "canary"})
    assert good.requests[0].content == b"client_secret=canary"
    assert other.requests == []


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_handshake_that_is_given_up_leaves_no_connection(tls: Tls, how: str) -> None:
    """E18: a server that says nothing at all keeps nothing of ours; it sees the end when we have given up."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        while await reader.read(65536):
            pass
        ended.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    egress = open_egress(tls, f"good.test:{port}")
    late = 1.0 if how == "late" else None
    task = asyncio.create_task(egress.send("GET", f"https://good.test:{port}/", timeout_s=late))
    try:
        async with asyncio.timeout(30):
            await begun.wait()
            if how == "cancelled":
                # Into the handshake.
                await asyncio.sleep(0.2)
                task.cancel()
            (error,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(error, asyncio.CancelledError if how == "cancelled" else EgressUnavailable)
            await ended.wait()
    finally:
        await egress.close()
        server.close()
        await server.wait_closed()
