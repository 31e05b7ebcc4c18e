"""An HTTP/2 client that sends what a well-behaved one would not."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

Headers = Sequence[tuple[str, str]]


@dataclass
class Reply:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    # Set when the whole connection went away.
    closed: bool = False

    @property
    def http_status(self) -> str:
        return self.headers.get(":status", "")

    @property
    def grpc_status(self) -> str:
        return self.headers.get("grpc-status", "")


class RawConnection:
    """One TLS connection with HTTP/2 on it and no checks of what is sent."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.replies: dict[int, Reply] = {}
        self.settings: dict[int, int] = {}
        self.closed = False
        self.flush()

    def flush(self) -> None:
        """Sends what is ready."""
        try:
            self.tls.sendall(self.h2.data_to_send())
        except OSError:
            self.closed = True

    def send(self, headers: Headers, body: bytes = b"", *, end: bool = True, trailers: Headers = ()) -> int:
        """Opens a stream with these headers and a body; returns its id."""
        stream = self.h2.get_next_available_stream_id()
        self.replies[stream] = Reply()
        self.h2.send_headers(stream, headers)
        if body:
            self.h2.send_data(stream, body, end_stream=end and not trailers)
        elif end and not trailers:
            self.h2.send_data(stream, b"", end_stream=True)
        if trailers:
            self.h2.send_headers(stream, trailers, end_stream=True)
        self.flush()
        return stream

    def reply(self, stream: int, timeout_s: float = 5.0) -> Reply:
        """Waits for the end of a stream, or of the connection."""
        reply = self.replies[stream]
        self.pump(timeout_s, until=lambda: reply.ended or reply.reset is not None)
        reply.closed = self.closed
        return reply

    def pump(self, timeout_s: float, until: object = None) -> None:
        """Receives until a condition holds, the connection ends or time is up."""
        deadline = time.monotonic() + timeout_s
        while not self.closed and not (callable(until) and until()):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            self.tls.settimeout(left_s)
            try:
                data = self.tls.recv(65536)
            except TimeoutError:
                return
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            try:
                events = self.h2.receive_data(data)
            except h2.exceptions.ProtocolError:
                self.closed = True
                return
            for event in events:
                self._take(event)
            self.flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings |= {
                int(code): setting.new_value for code, setting in event.changed_settings.items()
            }
        elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            self.replies[event.stream_id].headers |= {
                _text(name): _text(value) for name, value in event.headers
            }
        elif isinstance(event, h2.events.DataReceived):
            self.replies[event.stream_id].body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.replies[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.replies[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True


@contextmanager
def raw_connection(port: int, ca_file: Path) -> Iterator[RawConnection]:
    """A connection to the edge."""
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield RawConnection(tls)


def grpc_headers(path: str, *extra: tuple[str, str], token: str | None = None) -> list[tuple[str, str]]:
    """The headers of a gRPC call."""
    headers = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    if token is not None:
        headers.append(("authorization", f"Bearer {token}"))
    return [*headers, *extra]


EMPTY_MESSAGE = bytes(5)


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
