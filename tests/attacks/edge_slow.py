"""A6, A19: connections that do next to nothing, and when the edge ends them."""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tests.attacks.edge_floods import Target
from tests.attacks.frames import (
    DATA,
    EMPTY_MESSAGE,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    QUERY,
    UPLOAD,
    Attacker,
    call_headers,
    frame,
    handshaken,
)
from tests.gateway.weakened import Json, manager, routes

_NO_WINDOW = struct.pack(">HI", 4, 0)


@dataclass(frozen=True)
class Slow:
    """One kind of them; `begin` does what they do, and gives the attacker where HTTP/2 is spoken."""

    row: str
    name: str
    begin: Callable[[Target, ExitStack], Attacker | socket.socket]
    # After how many seconds the edge ends it, as configured.
    limit_s: float


def _half_hello(target: Target, stack: ExitStack) -> socket.socket:
    plain = stack.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=10))
    plain.sendall(b"\x16\x03\x01")
    return plain


def _no_preface(target: Target, stack: ExitStack) -> Attacker:
    return Attacker(stack.enter_context(handshaken(target.port, target.ca_file)))


def _half_preface(target: Target, stack: ExitStack) -> Attacker:
    one = _no_preface(target, stack)
    one.tls.sendall(PREFACE[:10])
    return one


def _half_headers(target: Target, stack: ExitStack) -> Attacker:
    one = _opened(target, stack)
    one.send(frame(HEADERS, 0, 1, one.block(call_headers(QUERY, target.token))))
    return one


def _idle_upload(target: Target, stack: ExitStack) -> Attacker:
    one = _opened(target, stack)
    one.send(frame(HEADERS, END_HEADERS, 1, one.block(call_headers(UPLOAD, target.token))))
    return one


def _half_message(target: Target, stack: ExitStack) -> Attacker:
    one = _opened(target, stack)
    one.send(frame(HEADERS, END_HEADERS, 1, one.block(call_headers(QUERY, target.token))))
    one.send(frame(DATA, 0, 1, b"\0\0"))
    return one


def _unread_answer(target: Target, stack: ExitStack) -> Attacker:
    one = _opened(target, stack, _NO_WINDOW)
    one.send(frame(HEADERS, END_HEADERS, 1, one.block(call_headers(QUERY, target.token))))
    one.send(frame(DATA, END_STREAM, 1, EMPTY_MESSAGE))
    return one


def _opened(target: Target, stack: ExitStack, settings: bytes = b"") -> Attacker:
    one = _no_preface(target, stack)
    one.open(settings)
    return one


KINDS = (
    Slow("A6", "half a TLS hello", _half_hello, 5),
    Slow("A6", "no preface", _no_preface, 300),
    Slow("A6", "half a preface", _half_preface, 300),
    Slow("A6", "half the headers", _half_headers, 10),
    Slow("A6", "half a message", _half_message, 15),
    Slow("A6", "an answer never read", _unread_answer, 60),
    Slow("A19", "an upload that sends nothing", _idle_upload, 600),
)

# Those that a person waits for; the others are shown with shorter limits.
SHORT_LIMIT_S = 15


def cut_after(target: Target, kind: Slow, count: int, watch_s: float) -> list[float | None]:
    """Seconds until the edge ended each of so many; None for those that it had not when time was up."""
    with ExitStack() as stack:
        ends: dict[int, float] = {}
        selector = stack.enter_context(selectors.DefaultSelector())
        for number in range(count):
            began = kind.begin(target, stack)
            plain = began.tls if isinstance(began, Attacker) else began
            plain.setblocking(False)
            selector.register(plain, selectors.EVENT_READ, (number, began, time.monotonic()))
            if number % 50 == 0:
                # Opening thousands takes longer than some limits.
                _note_ends(selector, ends, 0)
        deadline = time.monotonic() + watch_s
        while len(ends) < count and time.monotonic() < deadline:
            _note_ends(selector, ends, 0.1)
        return [ends.get(number) for number in range(count)]


def _note_ends(selector: selectors.BaseSelector, ends: dict[int, float], timeout_s: float) -> None:
    for key, _ in selector.select(timeout_s):
        number, began, since = key.data
        if number not in ends and _ended(began):
            ends[number] = time.monotonic() - since
            selector.unregister(key.fileobj)


def _ended(one: Attacker | socket.socket) -> bool:
    if isinstance(one, Attacker):
        one.take()
        # A stream that is reset, or answered by trailers alone, has ended while its connection lives.
        return one.closed or one.goaway is not None or bool(one.resets) or one.ended_streams > 0
    try:
        return not one.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def hurried(config: Json, seconds: float = 1) -> None:
    """Makes every limit of time a second, or so many, so that nobody need wait for them."""
    limit = f"{seconds:g}s"
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    chain["transport_socket_connect_timeout"] = limit
    own = manager(config)
    own["request_headers_timeout"] = own["stream_idle_timeout"] = limit
    own["common_http_protocol_options"]["idle_timeout"] = limit
    for route in routes(config):
        if "path" in route["match"]:
            route["route"]["idle_timeout"] = limit
            route["route"]["max_stream_duration"] = {"max_stream_duration": limit}


def patient(config: Json) -> None:
    """Takes every limit of time away."""
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    chain.pop("transport_socket_connect_timeout")
    own = manager(config)
    own["request_headers_timeout"] = own["stream_idle_timeout"] = "0s"
    own["common_http_protocol_options"]["idle_timeout"] = "0s"
    for route in routes(config):
        if "path" in route["match"]:
            route["route"]["idle_timeout"] = "0s"
            route["route"].pop("max_stream_duration")
