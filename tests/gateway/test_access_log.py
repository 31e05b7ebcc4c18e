"""The access log, the id of each call, and the numbers at the private port."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.methods import EDGE_METHODS
from services.gateway.envoy.metrics import FAMILIES, LABELS, EnvoyCollector
from tests.gateway.http_door import http_client, problem
from tests.gateway.raw_http2 import EMPTY_MESSAGE, grpc_headers, raw_connection
from tests.gateway.rig import Edge, bearer, free_port, running_edge
from tests.gateway.weakened import Json, manager, weakened

QUERY = "/sealcomb.v1.VectorService/Query"
FIELDS = {
    "timestamp", "event", "service", "method", "protocol", "status", "grpc_status", "flags", "duration_ms",
    "received_bytes", "sent_bytes", "request_id", "account", "address",
}  # fmt: skip
CANARY = "canary-3f9c2b7e51d84a06b1"


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("log")
    with running_edge(folder, metrics_port=str(metrics_port)) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account(CANARY).token


def lines(text: str) -> list[dict[str, Any]]:
    """The access log's lines; every line of the log must be JSON."""
    return [found for line in text.splitlines() if (found := json.loads(line)).get("event") == "access"]


def line_of(edge: Edge, request_id: str) -> dict[str, Any]:
    """The one line of a call, which Envoy writes within a second or so."""
    found: list[dict[str, Any]] = []

    def written() -> bool:
        found[:] = [line for line in lines(edge.log()) if line["request_id"] == request_id]
        return bool(found)

    wait_for(written)
    (line,) = found
    return line


def test_a_calls_line_says_who_what_and_how_long(edge: Edge, token: str) -> None:
    with http_client(edge, token) as client:
        account = client.get("/v1/whoami").json()["account_id"]
        response = client.post("/v1/collections/honey/points:query", json={"top_k": 3})
    line = line_of(edge, response.headers["x-request-id"])
    assert line.keys() == FIELDS
    assert (line["method"], line["account"], line["status"]) == (QUERY, account, 200)
    assert (line["service"], line["protocol"], line["address"]) == ("edge", "HTTP/1.1", "127.0.0.1")
    assert line["sent_bytes"] == len(response.content)
    assert line["received_bytes"] == len(b'{"top_k":3}')


def test_every_answer_has_an_id_of_ours_and_a_line(edge: Edge, token: str) -> None:
    """Refusals by Envoy, by policy and by a service, over gRPC; a client's own id is nobody's."""
    forged = "00000000-0000-4000-8000-000000000000"
    cases = [(QUERY, token), (QUERY, None), (QUERY, "nonsense"), ("/sealcomb.v1.Nothing/Nothing", token)]
    seen = []
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        for path, used in cases:
            headers = grpc_headers(path, ("x-request-id", forged), token=used)
            reply = connection.reply(connection.send(headers, EMPTY_MESSAGE))
            seen.append(reply.headers["x-request-id"])
            assert not [name for name in reply.headers if name.startswith("sealcomb")]
    assert len({*seen, forged}) == len(cases) + 1
    for request_id, (path, _) in zip(seen, cases, strict=True):
        assert UUID(request_id).version == 4
        assert line_of(edge, request_id)["method"] == (path if path in EDGE_METHODS else "unlisted")


def test_the_same_id_is_in_the_answer_the_error_and_at_the_service(edge: Edge, token: str) -> None:
    with http_client(edge, token) as client:
        done = client.get("/v1/collections/honey")
        assert dict(edge.backends.seen[-1].metadata)["x-request-id"] == done.headers["x-request-id"]
        edge.backends.failure = lambda: RuntimeError("unforeseen")
        failed = client.get("/v1/collections/honey")
        edge.backends.failure = None
    assert problem(failed)["request_id"] == failed.headers["x-request-id"]


def test_a_refused_call_is_told_apart_by_status(edge: Edge) -> None:
    with http_client(edge, "nonsense") as client:
        response = client.get("/v1/whoami")
    line = line_of(edge, response.headers["x-request-id"])
    assert (line["status"], line["method"]) == (401, "/sealcomb.v1.TokenService/WhoAmI")
    assert "account" not in line


def test_health_is_not_in_it(edge: Edge) -> None:
    assert edge.health() == "SERVING"
    with http_client(edge) as client:
        line_of(edge, client.get("/v1/whoami").headers["x-request-id"])
    assert "Health/Check" not in edge.log()


def hostile_calls(edge: Edge, token: str, target: Edge | None = None) -> None:
    """Calls that would like to be in the log: by path, query, header, body, and with line ends and quotes."""
    target = target or edge
    evil = ['"}\n{"event":"access","forged":true}', "\r\n", '\\"', "\x1b[31m", "%0a%0d", "\u2028", "{" * 50]
    with http_client(target, token) as client:
        for text in evil:
            name = f"{CANARY}{text}"
            for path in ("/v1/collections/", "/v1/nothing/", "/"):
                client.get(path + httpx_quote(name))
            client.get("/v1/collections", params={"page_token": name, CANARY: name})
            client.post("/v1/collections/a/points:query", json={"collection": name})
            client.post("/v1/tokens", json={"label": name, "scopes": [name]})
        client.get("/v1/collections", headers={"user-agent": CANARY, "x-request-id": CANARY, CANARY: "a"})
        client.get("/v1/collections", headers={"authorization": f"Bearer {CANARY}"})
    with target.channel() as channel:
        method: Any = channel.unary_unary(f"/{CANARY}/x")
        with pytest.raises(grpc.RpcError):
            method(b"", metadata=(*bearer(token), ("user-agent", CANARY)), timeout=5)


def httpx_quote(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def test_nothing_that_a_client_wrote_is_in_it(edge: Edge, token: str) -> None:
    """G14, B3: no name, no token, no path, no query, no header, and no line of a client's making."""
    before = len(lines(edge.log()))
    hostile_calls(edge, token)
    with http_client(edge, token) as client:
        line_of(edge, client.get("/v1/whoami").headers["x-request-id"])
    text = edge.log()
    written = lines(text)
    assert len(written) > before + 40
    assert all(line.keys() <= FIELDS for line in written)
    assert {line["method"] for line in written} <= {*EDGE_METHODS, "unlisted", "refused", "/openapi.json"}
    assert "canary" not in text
    assert "forged" not in text
    assert token[-36:] not in text


def test_with_the_path_in_it_a_name_would_be_there(edge: Edge, token: str) -> None:
    """Twin of the test above."""
    path = edge.folder / "weak-access.log"

    def weaken(config: Json) -> None:
        for listener in config["static_resources"]["listeners"]:
            http = listener["filter_chains"][0]["filters"][0]["typed_config"]
            (log,) = http["access_log"]
            log["typed_config"]["@type"] = (
                "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
            )
            log["typed_config"]["path"] = str(path)
            log["typed_config"]["log_format"]["json_format"]["path"] = "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"

    with weakened(edge, weaken) as twin:
        hostile_calls(edge, token, twin)
        wait_for(lambda: CANARY in path.read_text())


def test_addresses_can_be_left_out(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_edge(tmp_path_factory.mktemp("noaddress"), access_log_addresses="false") as edge:
        with http_client(edge) as client:
            response = client.get("/v1/whoami")
        line = line_of(edge, response.headers["x-request-id"])
    assert "address" not in line
    assert "127.0.0.1" not in json.dumps(line)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_metrics_have_fixed_labels_whatever_clients_send(edge: Edge, token: str, metrics_port: int) -> None:
    """A16: neither a new label nor a new value of one comes of hostile calls."""

    def shape(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    hostile_calls(edge, token)
    first = scrape(metrics_port)
    for _ in range(2):
        hostile_calls(edge, token)
    second = scrape(metrics_port)
    assert shape(second) == shape(first)
    assert "canary" not in second
    names = {family.name for family in text_string_to_metric_families(second)}
    assert {"envoy_http_downstream_rq", "sealcomb_edge_decisions"} <= names
    assert {name for name in names if name.startswith("envoy")} <= FAMILIES
    listeners = set(re.findall(r'envoy_http_conn_manager_prefix="([^"]+)"', second))
    assert {"edge", "http"} <= listeners <= {"edge", "http", "admin"}


def test_a_label_that_is_not_listed_is_dropped() -> None:
    """A16, and its twin: what Envoy said had it."""
    text = (
        "# TYPE envoy_http_downstream_rq counter\n"
        '# TYPE envoy_http_downstream_rq_total counter\nenvoy_http_downstream_rq_total{path="/canary"} 1\n'
        'envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="edge"} 2\n'
        "# TYPE envoy_canary gauge\nenvoy_canary{} 1\n"
    )

    class Admin:
        def metrics(self) -> str:
            return text

    samples = [one for family in EnvoyCollector(Admin()).collect() for one in family.samples]  # type: ignore[arg-type]
    assert [(one.value, one.labels.keys() <= LABELS) for one in samples] == [(2.0, True)]
    assert "canary" in text


def test_metrics_are_on_loopback_alone_and_not_at_the_edge(edge: Edge, token: str) -> None:
    with http_client(edge, token) as client:
        for path in (
            "/metrics",
            "/stats/prometheus",
            "/stats",
            "/config_dump",
            "/server_info",
            "/healthcheck/fail",
        ):
            assert client.get(path).status_code == 404
            assert client.post(path).status_code == 404
    assert edge.health() == "SERVING"
    assert manager(json.loads((edge.run_dir / "envoy.json").read_text()))["stat_prefix"] == "edge"


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
