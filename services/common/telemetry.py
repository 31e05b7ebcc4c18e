"""Logs and metrics. A log line is JSON with allow-listed fields only, so that no plaintext, name,
token or key can reach a log by way of a forgotten field; metrics have labels from fixed sets."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from services.common import tracing

LOG_FIELDS = frozenset(
    {
        "event", "level", "timestamp", "logger", "service", "method", "reason", "why", "code", "peer",
        "account", "token_id", "resource", "key_id", "request_id", "job_id", "duration_ms", "count",
        "size_bytes", "version", "port", "pid", "exit_code", "attempt", "state", "exception_type",
        "exception_at", "provider", "points", "sequence",
    }
)  # fmt: skip
_VALUE_CHARS_MAX = 256

_calls = Counter("sealcomb_calls_total", "Inner calls by outcome", ["service", "method", "code"])
_seconds = Histogram(
    "sealcomb_call_seconds",
    "Duration of inner calls",
    ["service", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


_request_id: ContextVar[str] = ContextVar("sealcomb_request_id", default="")


def begin_request(request_id: str) -> None:
    """Makes this the id of the call in progress: on its log lines, and with the calls that it makes."""
    _request_id.set(request_id)


def current_request_id() -> str:
    """The id of the call in progress; empty outside one."""
    return _request_id.get()


def observe_call(service: str, method: str, code: str, seconds: float) -> None:
    """Counts one finished call. `method` must be a listed path, never what a peer sent."""
    tracing.say_code(code)
    _calls.labels(service, method, code).inc()
    _seconds.labels(service, method).observe(seconds)


class _FromLibraries(logging.Handler):
    """What libraries log, without their texts: those may quote anybody's data."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().error("a library reports", logger=record.name, exc_info=error)


def configure_logging(service: str, level: str = "info") -> None:
    """Sends JSON log lines of this process to standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    if not any(isinstance(handler, _FromLibraries) for handler in root.handlers):
        # With none at all, Python itself would print every warning's whole text.
        root.addHandler(_FromLibraries(logging.WARNING))

    def add_service(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_service,
            add_request_id,
            exception_place,
            keep_listed_fields,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def add_request_id(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Says which call a line is about, where it is written within one."""
    if request_id := current_request_id():
        event.setdefault("request_id", request_id)
    return event


def exception_place(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces an exception by its type and its place: its text and values may be anybody's data."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info
    if isinstance(error, BaseException):
        event["exception_type"] = type(error).__name__
        places = []
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
            trace = trace.tb_next
        event["exception_at"] = " ".join(places[-8:])
    return event


def keep_listed_fields(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drops every field that is not listed and cuts long values."""
    kept: dict[str, Any] = {}
    for name, value in event.items():
        if name in LOG_FIELDS:
            kept[name] = value if isinstance(value, int | float | bool) else str(value)[:_VALUE_CHARS_MAX]
    return kept
