"""A7, A13, A14, A18, A21: the transport at the edge, with the real Envoy."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import h2.settings
import pytest

from services.common.methods import EDGE_METHODS
from tests.gateway.raw_http2 import EMPTY_MESSAGE, grpc_headers, raw_connection
from tests.gateway.rig import HOLD, Edge, free_port, running_edge
from tests.gateway.weakened import Json, manager, routes, tls, weakened

QUERY = "/sealcomb.v1.VectorService/Query"
HELD_MESSAGE = len(HOLD).to_bytes(5, "big") + HOLD


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("transport")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


@contextmanager
def handshake(
    edge: Edge, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, alpn: tuple[str, ...] = ("h2",)
) -> Iterator[ssl.SSLSocket]:
    """A TLS connection with one version and these protocols."""
    context = ssl.create_default_context(cafile=str(edge.installation.edge_ca_file))
    context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with (
        socket.create_connection(("127.0.0.1", edge.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def settings_of(edge: Edge) -> dict[int, int]:
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        connection.pump(2, until=lambda: connection.settings)
        return connection.settings


def test_the_settings_frame_says_exactly_what_is_configured(edge: Edge) -> None:
    """A7: SETTINGS as RFC 9113 numbers them."""
    settings = settings_of(edge)
    max_streams, stream_window, max_header_list, connect_protocol = 3, 4, 6, 8
    assert settings[max_streams] == 100
    assert settings[stream_window] == 64 * 1024
    assert settings[max_header_list] == 16 * 1024
    assert settings.get(connect_protocol, 0) == 0


def test_the_connection_window_is_one_mebibyte(edge: Edge) -> None:
    """A7: the rest of it arrives as a WINDOW_UPDATE of the connection."""
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        connection.pump(0.5)
        assert connection.h2.outbound_flow_control_window == 1024 * 1024


def test_a_connection_has_a_hundred_calls_at_once_and_ends_with_one_more(edge: Edge, token: str) -> None:
    """A7: whatever the client believes of SETTINGS; the work of a connection that is closed is cancelled."""
    for calls in (100, 101):
        with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
            connection.pump(0.3)
            connection.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
            connection.h2.remote_settings.acknowledge()
            for _ in range(calls):
                connection.send(grpc_headers(QUERY, token=token), HELD_MESSAGE)
            if calls == 100:
                wait_until(lambda: edge.backends.held == 100)
            else:
                connection.pump(3, until=lambda: edge.backends.held > 100)
                assert connection.closed
        wait_until(lambda: edge.backends.held == 0)


def test_without_the_limits_the_settings_say_otherwise(edge: Edge, token: str) -> None:
    """Twin of the tests above: Envoy's own defaults."""

    def weaken(config: Json) -> None:
        manager(config).pop("http2_protocol_options")

    with weakened(edge, weaken) as twin:
        settings = settings_of(twin)
    assert settings.get(3, 2**32) > 100
    assert 6 not in settings
    assert settings.get(4, 0) > 64 * 1024


def taken_of(edge: Edge, tried: int) -> int:
    """How many of so many connections, held at once, are spoken with."""
    taken = 0
    with ExitStack() as stack:
        for _ in range(tried):
            try:
                connection = stack.enter_context(raw_connection(edge.port, edge.installation.edge_ca_file))
            except OSError:
                continue
            connection.pump(10, until=lambda connection=connection: connection.settings)
            taken += bool(connection.settings)
    return taken


def connection_bound(config: Json) -> Json:
    (found,) = (
        one["typed_config"]
        for one in config["overload_manager"]["resource_monitors"]
        if "max_active_downstream_connections" in one["typed_config"]
    )
    assert isinstance(found, dict)
    return found


def test_connections_above_the_bound_are_not_taken(edge: Edge) -> None:
    """A7: shown with ten in place of the ten thousand that run; those that stand are untouched."""
    running = connection_bound(json.loads((edge.run_dir / "envoy.json").read_text()))
    assert running["max_active_downstream_connections"] == 10_000

    def lower(config: Json) -> None:
        connection_bound(config)["max_active_downstream_connections"] = 10

    with weakened(edge, lower) as few:
        assert 5 <= taken_of(few, 30) <= 10
        wait_until(lambda: few.health() == "SERVING")


def test_without_the_bound_all_of_them_are_taken(edge: Edge) -> None:
    """Twin of the test above."""

    def weaken(config: Json) -> None:
        connection_bound(config)["max_active_downstream_connections"] = 1_000_000

    with weakened(edge, weaken) as twin:
        assert taken_of(twin, 30) == 30


def test_tls_below_1_3_is_refused(edge: Edge) -> None:
    """A13."""
    with pytest.raises((ssl.SSLError, ConnectionError)), handshake(edge, ssl.TLSVersion.TLSv1_2):
        pass
    with handshake(edge) as connection:
        assert connection.version() == "TLSv1.3"
        assert connection.cipher()[0].startswith("TLS_")  # type: ignore[index]


def test_with_tls_1_2_configured_it_would_be_accepted(edge: Edge) -> None:
    """Twin of the test above."""

    def weaken(config: Json) -> None:
        tls(config)["tls_params"]["tls_minimum_protocol_version"] = "TLSv1_2"

    with weakened(edge, weaken) as twin, handshake(twin, ssl.TLSVersion.TLSv1_2) as connection:
        assert connection.version() == "TLSv1.2"


def test_no_early_data_is_accepted(edge: Edge, tmp_path: Path) -> None:
    """A14: no session ticket of the edge allows early data, so no request can be replayed in it."""
    ticket, answer = replayed(edge.port, edge.installation.edge_ca_file, tmp_path)
    assert "Max Early Data: 0" in ticket or "Max Early Data" not in ticket
    assert "Early data was accepted" not in answer


def test_a_server_that_takes_early_data_is_told_apart(edge: Edge, tmp_path: Path) -> None:
    """Twin of the test above: Envoy has no switch for it, so a server that has, by the edge's certificate."""
    port, folder = free_port(), edge.installation.edge_tls_dir
    command = [
        "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(folder / "cert.pem"), "-key",
        str(folder / "key.pem"), "-tls1_3", "-early_data", "-alpn", "h2",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_until(lambda: listens(port))
            ticket, answer = replayed(port, edge.installation.edge_ca_file, tmp_path)
        finally:
            server.kill()
    assert "Max Early Data: 16384" in ticket
    assert "Early data was accepted" in answer


def replayed(port: int, ca_file: Path, folder: Path) -> tuple[str, str]:
    """What a session's ticket says, and what comes of early data in a second connection with it."""
    session, early = folder / "session.pem", folder / "early"
    # An HTTP/2 preface with empty SETTINGS: tickets come with the server's first answer.
    early.write_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    base = [
        "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-alpn", "h2", "-servername",
        "localhost", "-CAfile", str(ca_file),
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen([*base, "-sess_out", str(session)], stdin=pipe, stdout=pipe, stderr=pipe) as first:
        assert first.stdin is not None
        first.stdin.write(early.read_bytes())
        first.stdin.flush()
        try:
            wait_until(lambda: session.exists() and b"END SSL SESSION" in session.read_bytes())
            output, _ = first.communicate(timeout=30)
        finally:
            first.kill()
    assert b"Verify return code: 0" in output
    shown = subprocess.run(
        ["openssl", "sess_id", "-in", str(session), "-noout", "-text"], capture_output=True, check=True
    )
    again = subprocess.run(
        [*base, "-sess_in", str(session), "-early_data", str(early)],
        input=b"",
        capture_output=True,
        timeout=30,
    )
    return shown.stdout.decode(), (again.stdout + again.stderr).decode("utf-8", "replace")


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("alpn", [("http/1.1",), ("http/1.0",), ("h2c",), ()])
def test_http_1_1_gets_no_answer(edge: Edge, token: str, alpn: tuple[str, ...]) -> None:
    """A21: HTTP/2 is the only protocol, whatever is negotiated."""
    before = len(edge.backends.seen)
    body = (
        f"POST {QUERY} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc\r\nte: trailers\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: 5\r\n\r\n"
    ).encode() + EMPTY_MESSAGE
    try:
        with handshake(edge, alpn=alpn) as connection:
            assert connection.selected_alpn_protocol() is None
            connection.sendall(body)
            received = b""
            while data := connection.recv(65536):
                received += data
            assert b"HTTP/1" not in received
    except (ssl.SSLError, ConnectionError):
        pass
    assert len(edge.backends.seen) == before


def test_an_upgrade_or_plain_http_2_at_the_port_is_refused(edge: Edge) -> None:
    """A21, C8."""
    upgrade = (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\r\n"
    )
    for sent in (upgrade, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)):
        with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as plain:
            plain.sendall(sent)
            try:
                received = plain.recv(65536)
            except ConnectionError:
                received = b""
        assert b"HTTP/1" not in received
        assert b"101" not in received


def test_with_the_codec_left_to_guess_http_1_1_is_answered(edge: Edge, token: str) -> None:
    """Twin of the tests above."""

    def weaken(config: Json) -> None:
        manager(config)["codec_type"] = "AUTO"
        tls(config)["alpn_protocols"] = ["h2", "http/1.1"]

    with weakened(edge, weaken) as twin, handshake(twin, alpn=("http/1.1",)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")


def test_a_call_ends_at_its_own_deadline_in_the_service_too(edge: Edge, token: str) -> None:
    """A18: the edge heeds the client's deadline itself, and the service's work is cancelled."""
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        started = time.monotonic()
        headers = grpc_headers(QUERY, ("grpc-timeout", "300m"), token=token)
        reply = connection.reply(connection.send(headers, HELD_MESSAGE))
        assert reply.grpc_status == "4"
        assert 0.2 < time.monotonic() - started < 2
    wait_until(lambda: edge.backends.held == 0)


@pytest.mark.parametrize("timeout", [None, "99999999H", "99999999S"])
def test_no_deadline_and_a_huge_one_are_cut_to_the_methods_own(
    edge: Edge, token: str, timeout: str | None
) -> None:
    """A18: shown with a method's limit lowered to one second, so that the test need not wait fifteen."""

    def lower(config: Json) -> None:
        for route in routes(config):
            if route["match"].get("path") == QUERY:
                route["route"]["max_stream_duration"] = {
                    "max_stream_duration": "1s",
                    "grpc_timeout_header_max": "1s",
                }

    assert held_for(edge, token, lower, timeout) == "4"
    wait_until(lambda: edge.backends.held == 0)


def test_every_route_has_a_limit_and_caps_the_clients_deadline(edge: Edge) -> None:
    """A18: the configuration that runs."""
    config = json.loads((edge.run_dir / "envoy.json").read_text())
    forwarded = [route["route"] for route in routes(config) if "route" in route]
    assert len(forwarded) > 30
    for route in forwarded:
        duration = route["max_stream_duration"]
        assert duration["max_stream_duration"] == duration["grpc_timeout_header_max"]
        assert 0 < float(duration["max_stream_duration"].rstrip("s")) <= 3600
    assert {route["match"].get("path", "") for route in routes(config)} >= set(EDGE_METHODS)
    for route in routes(config):
        if (method := EDGE_METHODS.get(route["match"].get("path", ""))) is not None:
            assert (
                float(route["route"]["max_stream_duration"]["max_stream_duration"][:-1]) == method.timeout_s
            )
            assert float(route["route"]["idle_timeout"][:-1]) >= method.timeout_s


def test_a_silent_call_lives_to_its_own_limit(edge: Edge, token: str) -> None:
    """An upload is silent while its document is worked on; shown with the general limit at one second."""

    def shorten(config: Json) -> None:
        manager(config)["stream_idle_timeout"] = "1s"

    assert held_for(edge, token, shorten, None) == ""
    wait_until(lambda: edge.backends.held == 0)


def test_without_an_idle_limit_of_its_own_a_silent_call_is_cut(edge: Edge, token: str) -> None:
    """Twin of the test above."""

    def weaken(config: Json) -> None:
        manager(config)["stream_idle_timeout"] = "1s"
        for route in routes(config):
            route.get("route", {}).pop("idle_timeout", None)

    assert held_for(edge, token, weaken, None) == "4"
    wait_until(lambda: edge.backends.held == 0)


def test_without_the_cap_a_call_holds_on(edge: Edge, token: str) -> None:
    """Twin of the tests above."""

    def weaken(config: Json) -> None:
        for route in routes(config):
            route.get("route", {}).pop("max_stream_duration", None)

    assert held_for(edge, token, weaken, None) == ""
    wait_until(lambda: edge.backends.held == 0)


def test_a_client_that_goes_away_ends_its_call_in_the_service(edge: Edge, token: str) -> None:
    """A18: within a second."""
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        connection.send(grpc_headers(QUERY, token=token), HELD_MESSAGE)
        wait_until(lambda: edge.backends.held == 1)
    wait_until(lambda: edge.backends.held == 0, 1.0)


def test_a_message_above_the_limit_is_refused_before_a_service_sees_it(edge: Edge, token: str) -> None:
    """A11: the limit of unary requests, 4 MiB."""
    before = len(edge.backends.seen)
    answer = edge.call(QUERY, token, bytes((4 << 20) + 1))
    assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert len(edge.backends.seen) == before
    assert edge.call(QUERY, token, bytes(4 << 20)).code is grpc.StatusCode.OK
    assert (
        edge.call("/sealcomb.v1.DocumentService/UploadDocument", token, bytes(5 << 20)).code
        is grpc.StatusCode.OK
    )


def test_without_the_buffer_limit_the_service_gets_it(edge: Edge, token: str) -> None:
    """Twin of the test above."""

    def weaken(config: Json) -> None:
        filters = manager(config)["http_filters"]
        filters[:] = [one for one in filters if one["name"] != "buffer"]
        for route in routes(config):
            route.get("typed_per_filter_config", {}).pop("buffer", None)

    with weakened(edge, weaken) as twin:
        before = len(edge.backends.seen)
        assert twin.call(QUERY, token, bytes(5 << 20)).code is grpc.StatusCode.OK
        assert len(edge.backends.seen) == before + 1


def held_for(edge: Edge, token: str, change: Callable[[Json], None], timeout: str | None) -> str:
    """The gRPC status of a held call after at most two seconds; empty if it is still running."""
    extra = () if timeout is None else (("grpc-timeout", timeout),)
    ca_file = edge.installation.edge_ca_file
    with weakened(edge, change) as twin, raw_connection(twin.port, ca_file) as connection:
        stream = connection.send(grpc_headers(QUERY, *extra, token=token), HELD_MESSAGE)
        return connection.reply(stream, 2.0).grpc_status


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
