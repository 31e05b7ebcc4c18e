"""HTTP/2 frames by hand, for clients that keep no rule: TLS, a preface, and whatever bytes follow.

Nothing is checked before it is sent, and what comes back is only counted.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0x0, 0x1, 0x2, 0x3, 0x4
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x6, 0x7, 0x8, 0x9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_MESSAGE = bytes(5)
QUERY = "/sealcomb.v1.VectorService/Query"
UPLOAD = "/sealcomb.v1.DocumentService/UploadDocument"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def call_headers(path: str, token: str, *extra: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers of a call."""
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("authorization", f"Bearer {token}"),
        *extra,
    ]


@dataclass
class Attacker:
    """One connection of theirs."""

    tls: ssl.SSLSocket
    received: Counter[int] = field(default_factory=Counter)
    resets: Counter[int] = field(default_factory=Counter)
    closed: bool = False
    # The error of a GOAWAY; None before one.
    goaway: int | None = None
    sent_bytes: int = 0
    ended_streams: int = 0
    # Streams that the edge has ended or reset.
    over: set[int] = field(default_factory=set)
    encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    _buffer: bytes = b""
    _next_stream: int = 1
    _pings: int = 0

    def open(self, settings: bytes = b"") -> None:
        """The preface, and SETTINGS."""
        self.tls.setblocking(False)
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def new_stream(self) -> int:
        """The next stream's number."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        return stream

    def headers(self, fields: Sequence[tuple[str, str]], flags: int = END_HEADERS) -> tuple[int, bytes]:
        """A new stream's HEADERS frame, of which nothing enters the dynamic table."""
        stream = self.new_stream()
        return stream, frame(HEADERS, flags, stream, self.block(fields))

    def block(self, fields: Sequence[tuple[str, str]]) -> bytes:
        """A header block."""
        return bytes(self.encoder.encode([(*pair, True) for pair in fields]))

    def send(self, data: bytes, timeout_s: float = 10.0, *, read: bool = True) -> bool:
        """Sends, and takes what comes unless told not to; False if the connection is gone or stuck."""
        view, deadline = memoryview(data), time.monotonic() + timeout_s
        while view and not self.closed:
            if time.monotonic() > deadline:
                return False
            if read:
                self.take()
            try:
                count = self.tls.send(view[:65536])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._ready(select.POLLOUT | (select.POLLIN if read else 0), 0.2)
                continue
            except OSError:
                self.closed = True
                break
            self.sent_bytes += count
            view = view[count:]
        return not self.closed

    def wait(self, timeout_s: float) -> bool:
        """Takes what comes until the connection has ended; whether it has."""
        deadline = time.monotonic() + timeout_s
        while not self.closed and (left_s := deadline - time.monotonic()) > 0:
            self._ready(select.POLLIN, min(left_s, 0.2))
            self.take()
        return self.closed

    def wait_for(self, kind: int, timeout_s: float) -> None:
        """Takes what comes until a frame of this kind did."""
        deadline = time.monotonic() + timeout_s
        while not self.closed and not self.received[kind] and time.monotonic() < deadline:
            self.wait_some(0.2)

    def wait_some(self, timeout_s: float) -> None:
        """Takes what comes within so many seconds, once something does."""
        self._ready(select.POLLIN, timeout_s)
        self.take()

    def sync(self, timeout_s: float = 10.0) -> bool:
        """Waits until all that was sent is processed, by a PING; False if the connection has ended."""
        self._pings += 1
        self.send(frame(PING, 0, 0, bytes(8)))
        deadline = time.monotonic() + timeout_s
        while not self.closed and self.received[-PING] < self._pings and time.monotonic() < deadline:
            self.wait_some(0.2)
        return not self.closed and self.goaway is None

    def take(self) -> None:
        """Takes what has come."""
        while not self.closed:
            try:
                data = self.tls.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            self._buffer += data
            self._count()

    def _ready(self, events: int, timeout_s: float) -> None:
        # Not `select`, which knows no socket above the thousandth.
        poll = select.poll()
        poll.register(self.tls, events)
        poll.poll(timeout_s * 1000)

    def _count(self) -> None:
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
            self.received[kind] += 1
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.ended_streams += 1
                self.over.add(stream)
            if kind == PING and flags & ACK:
                self.received[-PING] += 1
            elif kind == RST_STREAM:
                self.resets[int.from_bytes(payload, "big")] += 1
                self.over.add(stream)
            elif kind == GOAWAY and self.goaway in (None, 0):
                self.goaway = int.from_bytes(payload[4:8], "big")


@contextmanager
def attacker(
    port: int, ca_file: Path, *, settings: bytes = b"", receive_buffer: int = 0
) -> Iterator[Attacker]:
    """A connection to the edge with the preface sent."""
    with handshaken(port, ca_file, receive_buffer=receive_buffer) as tls:
        one = Attacker(tls)
        one.open(settings)
        yield one


@contextmanager
def handshaken(port: int, ca_file: Path, *, receive_buffer: int = 0) -> Iterator[ssl.SSLSocket]:
    """A TLS connection and nothing on it."""
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2"])
    plain = socket.socket()
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.settimeout(10)
    with plain:
        plain.connect(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            yield tls
