"""Spans by the OpenTelemetry SDK, sent by OTLP over HTTP. Imported only where an endpoint is configured.

Attributes are the ones set here and no others; spans that the collector does not take in time are
dropped, never waited for.
"""

from __future__ import annotations

import threading
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.tracing import TRACE_HEADER

_QUEUE_SPANS_MAX = 4096
_BATCH_SPANS_MAX = 512
_EVERY_MS = 2_000
_EXPORT_S_MAX = 5
_FLUSH_S_MAX = 3.0
_PARENT_CHARS_MAX = 64


class OtlpTracer:
    """Makes spans of one process and sends them in batches, in a thread of its own."""

    def __init__(self, service: str, endpoint: str, ca_file: Path | None, share: float) -> None:
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint.rstrip("/") + "/v1/traces",
            certificate_file=str(ca_file) if ca_file else None,
            timeout=_EXPORT_S_MAX,
        )
        self._provider = TracerProvider(
            # Without what the machine, its environment and its arguments would add.
            resource=Resource({"service.name": f"sealcomb-{service}"}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_QUEUE_SPANS_MAX,
                max_export_batch_size=_BATCH_SPANS_MAX,
                schedule_delay_millis=_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("sealcomb")

    def start(self, service: str, method: str, request_id: str, parent: str) -> OtlpSpan:
        """A span of a listed method."""
        context = TraceContextTextMapPropagator().extract({TRACE_HEADER: parent[:_PARENT_CHARS_MAX]})
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=context,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "sealcomb.request_id": request_id,
            },
        )
        return OtlpSpan(span)

    def close(self) -> None:
        """Sends what waits, for a moment, and ends."""
        # Flushing does not heed its limit, and the exporter goes on trying: it is told to give up in time.
        giving_up = threading.Timer(_FLUSH_S_MAX, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


class OtlpSpan:
    """One call."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def header(self) -> str:
        """Its place in the trace."""
        place = self._span.get_span_context()
        return f"00-{place.trace_id:032x}-{place.span_id:016x}-{int(place.trace_flags):02x}"

    def end(self, code: str) -> None:
        """The call is over."""
        self._span.set_attribute("rpc.grpc.status_code", code)
        if code != "OK":
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
