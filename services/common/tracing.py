"""Traces of inner calls, sent to an OpenTelemetry collector where one is configured; else nothing.

A span says which method of which service was called, how long it took, how it ended and under which
request id: never a name, an account, an address, a token or an exception's text. The trace begins
with the edge's decision about the call; what a client sends as `traceparent` does not get that far.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TRACE_HEADER = "traceparent"
_CANCELLED = "CANCELLED"


class Span(Protocol):
    """One call."""

    @property
    def header(self) -> str:
        """Its place in the trace, as W3C's `traceparent` says it."""

    def end(self, code: str) -> None:
        """The call is over, with this gRPC status."""


class Tracer(Protocol):
    """Makes spans and sends them."""

    def start(self, service: str, method: str, request_id: str, parent: str) -> Span:
        """A span of a listed method; `parent` is a `traceparent`, or empty."""

    def close(self) -> None:
        """Sends what waits, for a moment, and ends."""


@dataclass
class _Open:
    span: Span
    code: str = _CANCELLED  # what a call that says nothing of its end was


@dataclass
class _State:
    """One for each process, like its logs."""

    tracer: Tracer | None = None


_state = _State()
_open: ContextVar[_Open | None] = ContextVar("sealcomb_span", default=None)


@contextmanager
def sending_traces(
    service: str, endpoint: str, ca_file: Path | None = None, share: float = 1.0
) -> Iterator[None]:
    """Sends spans of this process to `<endpoint>/v1/traces` (OTLP over HTTP) for the block; empty: none.

    share: the part of the traces that is kept, decided where a trace begins. Raises ValueError where the
    packages of the extra `tracing` are not installed.
    """
    if not endpoint:
        yield
        return
    try:
        otlp = importlib.import_module("services.common.otlp")
    except ImportError:
        raise ValueError("SEALCOMB_OTLP_ENDPOINT is set: install the extra `tracing`") from None
    tracer: Tracer = otlp.OtlpTracer(service, endpoint, ca_file, share)
    _state.tracer = tracer
    try:
        yield
    finally:
        _state.tracer = None
        tracer.close()


def is_on() -> bool:
    """Whether spans are made."""
    return _state.tracer is not None


@contextmanager
def traced(path: str, request_id: str, parent: str) -> Iterator[None]:
    """A span around an inner call; `path` is a listed method, `parent` the `traceparent` of who called."""
    if _state.tracer is None:
        yield
        return
    service, _, method = path.lstrip("/").partition("/")
    mine = _Open(_state.tracer.start(service, method, request_id, parent))
    _open.set(mine)
    try:
        yield
    finally:
        mine.span.end(mine.code)
        # A stream may be ended in another context than the one it began in.
        if _open.get() is mine:
            _open.set(None)


def begun(path: str, request_id: str) -> Span | None:
    """A span that begins a trace, for who passes its place on by hand; None while none are made."""
    if _state.tracer is None:
        return None
    service, _, method = path.lstrip("/").partition("/")
    return _state.tracer.start(service, method, request_id, "")


def say_code(code: str) -> None:
    """Notes how the call in progress ended, by the name of its gRPC status."""
    mine = _open.get()
    if mine is not None:
        mine.code = code


def outgoing() -> tuple[tuple[str, str], ...]:
    """The metadata that makes calls from here part of the trace; none outside a traced call."""
    mine = _open.get()
    return () if mine is None else ((TRACE_HEADER, mine.span.header),)
