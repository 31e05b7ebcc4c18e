"""Traces: whole across hops, listed attributes alone, and never in the way of a call."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.common import tracing
from services.common.settings import ServiceSettings
from services.common.tracing import outgoing, say_code, sending_traces, traced
from services.standalone.ports import free_ports
from tests.common.collector import collecting

_PATH = "/sealcomb.v1.VectorService/Query"
_ATTRIBUTES = {"rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code", "sealcomb.request_id"}


def _fails() -> None:
    with traced(_PATH, "request-2", ""):
        say_code("INTERNAL")
        raise RuntimeError("canary of an exception")


def test_a_span_says_the_method_the_code_and_the_request_id_and_nothing_else() -> None:
    """B3, G14: attributes are listed, whatever happened in the call."""
    with collecting() as collector:
        with sending_traces("vectorstore", collector.endpoint):
            with traced(_PATH, "request-1", ""):
                say_code("OK")
            with pytest.raises(RuntimeError):
                _fails()
        (_, first), (service, second) = collector.spans
        assert service == "sealcomb-vectorstore"
        assert first.name == "sealcomb.v1.VectorService/Query"
        for span, code in ((first, "OK"), (second, "INTERNAL")):
            values = {attribute.key: attribute.value.string_value for attribute in span.attributes}
            assert set(values) == _ATTRIBUTES
            assert values["rpc.grpc.status_code"] == code
            assert not span.events
        assert not any(b"canary" in body for body in collector.requests)


def test_a_call_from_within_is_part_of_the_same_trace() -> None:
    with collecting() as collector:
        with sending_traces("ingest", collector.endpoint):
            with traced(_PATH, "r", ""):
                ((name, parent),) = outgoing()
                assert name == "traceparent"
            assert outgoing() == ()
            with traced(_PATH, "r", parent):
                pass
        (_, outer), (_, inner) = collector.spans
        assert inner.trace_id == outer.trace_id
        assert inner.parent_span_id == outer.span_id


def test_a_call_that_was_cancelled_is_said_to_be() -> None:
    with collecting() as collector:
        with (
            sending_traces("ingest", collector.endpoint),
            pytest.raises(asyncio.CancelledError),
            traced(_PATH, "r", ""),
        ):
            raise asyncio.CancelledError
        ((_, span),) = collector.spans
        codes = [a.value.string_value for a in span.attributes if a.key == "rpc.grpc.status_code"]
        assert codes == ["CANCELLED"]


@pytest.mark.parametrize("parent", ["", "canary", "00-0-0-00", "00-" + "f" * 200, "\0"])
def test_an_odd_parent_begins_a_new_trace(parent: str) -> None:
    with collecting() as collector:
        with sending_traces("ingest", collector.endpoint), traced(_PATH, "r", parent):
            pass
        ((_, span),) = collector.spans
        assert span.parent_span_id == b""


def test_a_share_of_none_sends_nothing() -> None:
    with collecting() as collector:
        with sending_traces("ingest", collector.endpoint, share=0.0), traced(_PATH, "r", ""):
            pass
        assert collector.spans == []


def test_without_an_endpoint_nothing_is_made() -> None:
    with sending_traces("ingest", ""), traced(_PATH, "r", ""):
        assert not tracing.is_on()
        assert outgoing() == ()


def test_a_collector_that_is_not_there_holds_no_call_up() -> None:
    with sending_traces("ingest", f"http://127.0.0.1:{free_ports(1)[0]}"):
        began = time.monotonic()
        for _ in range(10_000):
            with traced(_PATH, "r", ""):
                pass
        assert time.monotonic() - began < 20.0
        began = time.monotonic()
    assert time.monotonic() - began < 15.0, "its end waits for no collector either"


@pytest.mark.parametrize(
    "endpoint",
    ["http://collector:4318", "https://user:canary@collector:4318", "ftp://127.0.0.1:1", "collector"],
)
def test_traces_leave_this_machine_by_tls_alone(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN", "TLS_DIR", "CONTEXT_TRUST_DIR", "DATABASE_URL"):
        monkeypatch.setenv(f"SEALCOMB_{name}", "127.0.0.1:1")
    monkeypatch.setenv("SEALCOMB_OTLP_ENDPOINT", endpoint)
    with pytest.raises(ValueError, match="otlp_endpoint"):
        ServiceSettings()  # type: ignore[call-arg]  # from the environment
