"""The second door: JSON over HTTPS, with the real Envoy and the real policy process."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest

from sealcomb.v1 import collection_service_pb2, vector_service_pb2
from services.common.errors import (
    FieldViolation,
    InvalidArgument,
    Kind,
    QuotaViolation,
    ResourceExhausted,
    SealcombError,
)
from services.common.methods import PUBLIC_METHODS, Scope
from services.common.rpc.problem import HTTP_STATUS
from services.gateway.reflection import client_stream_methods
from tests.gateway.http_door import OPENAPI, Operation, http_client, operations, problem
from tests.gateway.rig import LATE, Edge, running_edge
from tests.gateway.weakened import Json, http_manager, weakened

QUERY = "/v1/collections/honey/points:query"
UPSERT = "/v1/collections/honey/points:upsert"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("http")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


@pytest.fixture
def client(edge: Edge, token: str) -> Iterator[httpx.Client]:
    with http_client(edge, token) as one:
        yield one


def last_query(edge: Edge) -> vector_service_pb2.QueryRequest:
    return vector_service_pb2.QueryRequest.FromString(edge.backends.seen[-1].body)


def test_a_call_by_json_is_the_call_by_grpc(edge: Edge, token: str) -> None:
    with http_client(edge, token) as client:
        response = client.post(QUERY, json={"vector": [1, 2.5], "top_k": 3, "with_text": True})
        me = client.get("/v1/whoami").json()
    assert (response.status_code, response.json()["hits"]) == (200, [])
    assert response.headers["content-type"] == "application/json"
    expected = vector_service_pb2.QueryRequest(collection="honey", vector=[1, 2.5], top_k=3, with_text=True)
    assert last_query(edge) == expected
    assert edge.backends.seen[-1].account == me["account_id"]


@pytest.mark.parametrize("operation", operations(), ids=lambda one: f"{one.verb} {one.template}")
def test_every_operation_of_the_document_calls_its_method(
    edge: Edge, token: str, operation: Operation
) -> None:
    """Each once, as the OpenAPI document says, with the token that its scope wants."""
    verb, path, method = operation.verb, operation.path(), operation.method
    public = PUBLIC_METHODS[method]
    used = edge.operator_token if public.scope is Scope.OPERATOR else token
    if method.endswith("RevokeToken"):
        path = path.replace("/x:", "/00000000000000000000000000:")
    edge.backends.seen.clear()
    with http_client(edge, used) as client:
        body: object = [] if method in client_stream_methods() else {}
        response = client.request(verb, path, json=body if operation.has_body else None)
    if public.owner == "gateway":
        # Real ones, which answer for themselves.
        reason = response.json().get("reason", "") if response.status_code != 200 else ""
        assert reason not in ("NO_SUCH_METHOD", "REQUEST_UNFIT", "UNIMPLEMENTED", "TOKEN_INVALID")
    else:
        assert response.status_code == 200, response.text
        assert [seen.path for seen in edge.backends.seen] == [method]


def test_the_document_covers_every_public_method() -> None:
    assert {one.method for one in operations()} == set(PUBLIC_METHODS)


@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_of_error_is_a_problem_with_its_http_status(
    edge: Edge, client: httpx.Client, kind: Kind
) -> None:
    def failure() -> SealcombError:
        error = SealcombError('something "went" wrong; é', reason="SOME_REASON", retry_after_s=1.5)
        error.kind = kind
        return error

    edge.backends.failure = failure
    try:
        response = client.post(QUERY, json={})
    finally:
        edge.backends.failure = None
    body = problem(response)
    assert response.status_code == HTTP_STATUS[kind]
    assert (body["code"], body["reason"]) == (kind.name, "SOME_REASON")
    assert body["type"] == "https://sealcomb.dev/problems/some-reason"
    assert body["detail"] == 'something "went" wrong; é'
    assert (body["retry_after_s"], response.headers["retry-after"]) == (1.5, "2")
    assert not [name for name in response.headers if name.startswith(("grpc-", "sealcomb"))]


def test_field_and_quota_violations_are_in_the_problem(edge: Edge, client: httpx.Client) -> None:
    errors = [
        InvalidArgument("vector: too long", fields=[FieldViolation("vector", "too long")]),
        ResourceExhausted("too much", quotas=[QuotaViolation("account", "9 calls")], retry_after_s=0.2),
    ]
    bodies = []
    for error in errors:
        edge.backends.failure = lambda error=error: error
        bodies.append(problem(client.post(QUERY, json={})))
    edge.backends.failure = None
    assert bodies[0]["field_violations"] == [{"field": "vector", "description": "too long"}]
    assert bodies[1]["quota_violations"] == [{"subject": "account", "description": "9 calls"}]


def test_without_the_script_an_error_is_not_a_problem(edge: Edge, token: str) -> None:
    """The twin: what makes problems of errors is the script, not chance."""

    def weaken(config: Json) -> None:
        filters = http_manager(config)["http_filters"]
        filters[:] = [one for one in filters if one["name"] != "problems"]

    with weakened(edge, weaken) as twin, http_client(twin, "nothing") as client:
        response = client.get("/v1/whoami")
    assert response.status_code == 401
    assert response.headers.get("content-type") != "application/problem+json"


def test_an_unforeseen_fault_tells_nothing_of_the_inside(edge: Edge, client: httpx.Client) -> None:
    """A17."""
    edge.backends.failure = lambda: RuntimeError("SELECT secret FROM /var/lib/x; arn:aws:kms; Traceback")
    try:
        response = client.post(QUERY, json={})
    finally:
        edge.backends.failure = None
    assert problem(response)["reason"] == "INTERNAL"
    for leak in ("SELECT", "arn:", "/var", "Traceback", "127.0.0.1", "envoy", ".py"):
        assert leak not in response.text + str(response.headers)


def test_the_tokens_are_the_same_and_so_are_their_scopes(edge: Edge, token: str) -> None:
    narrow = edge.create_token(token, label="a", scopes=["read"]).token
    cases = {
        None: (401, "TOKEN_MISSING"),
        "nonsense": (401, "TOKEN_MALFORMED"),
        narrow: (403, "SCOPE_MISSING"),
    }
    before = len(edge.backends.seen)
    for used, expected in cases.items():
        with http_client(edge, used) as client:
            response = client.post(UPSERT, json={"points": [{"id": "a"}]})
        assert (response.status_code, problem(response)["reason"]) == expected
        assert (response.headers.get("www-authenticate") == "Bearer") == (response.status_code == 401)
    assert len(edge.backends.seen) == before
    with http_client(edge) as client:
        assert client.get("/v1/whoami", params={"access_token": token}).status_code == 400
        assert client.get("/v1/whoami", headers={"cookie": f"token={token}"}).status_code == 401


def test_the_limits_are_the_same_and_say_when_to_come_back(edge: Edge) -> None:
    created = edge.create_account(calls_per_second=0.5, burst=3)
    with http_client(edge, created.token) as client:
        answers = [client.get("/v1/collections") for _ in range(5)]
    assert [one.status_code for one in answers[:3]] == [200] * 3
    refused = answers[-1]
    body = problem(refused)
    assert (refused.status_code, body["reason"]) == (429, "RATE_LIMITED")
    assert body["retry_after_s"] > 0
    assert 1 <= int(refused.headers["retry-after"]) <= 4
    assert body["quota_violations"][0]["subject"] == "account"


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"null", b'"text"', b"{}{}", b'{"top_k":1}garbage', b'{"top_k":1.5}', b'{"top_k":-1}',
        b'{"top_k":99999999999}', b'{"top_k":"x"}', b'{"vector":[NaN]}', b'{"vector":[1e999]}',
        b'{"vector":{}}', b'{"vector_f32":"@@@"}', b'{"with_text":1}', b'{"collection":"b\xff"}',
        b'{"vector":[1,"canary-half', b'{"collection":"other"}', b"\x1f\x8b\x08\x00", b"\0\0\0\0\0",
        b'{"filter":' + b'{"not":' * 200 + b"{}" + b"}" * 200 + b"}",
        b'{"filter":' + b'{"not":' * 100_000, b"[" * 100_000, b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_a_body_that_does_not_fit_is_refused_and_not_repeated(
    edge: Edge, client: httpx.Client, body: bytes
) -> None:
    """A11: bad JSON, wrong types, deep nesting; what was sent is in no answer and no log."""
    before = len(edge.backends.seen)
    response = client.post(QUERY, content=body)
    assert (response.status_code, problem(response)["reason"]) == (400, "REQUEST_UNFIT")
    assert len(edge.backends.seen) == before
    assert "canary" not in response.text + edge.log()


def test_a_body_is_bounded_and_a_bound_one_is_taken(edge: Edge, client: httpx.Client) -> None:
    """A11: 1 MiB; of many tiny messages no more come than that."""
    taken = client.post(UPSERT, content=b'{"points":[{"text":"' + b"a" * (900 << 10) + b'"}]}')
    assert taken.status_code == 200
    before = len(edge.backends.seen)
    refused = client.post(UPSERT, content=b'{"points":[{"text":"' + b"a" * (5 << 20) + b'"}]}')
    assert (refused.status_code, problem(refused)["reason"]) == (413, "MESSAGE_TOO_LARGE")
    many = client.post(UPSERT, content=b'{"points":[' + b"{}," * (2 << 20) + b"{}]}")
    assert many.status_code == 413
    assert len(edge.backends.seen) == before


ENDLESS = {
    "a text": ("/v1/documents:upload", b'[{"chunk":"', b"A"),
    "a name": (UPSERT, b'{"', b"A"),
    "a number": (QUERY, b'{"top_k":', b"1"),
    "white space": ("/v1/points:upsert-stream", b"[", b" "),
    "messages": ("/v1/points:upsert-stream", b"[", b"{},"),
}


def endless(start: bytes, unit: bytes) -> Iterator[bytes]:
    """A body of 64 MiB in chunks, of which there is no end to be seen."""
    yield start
    for _ in range(64):
        yield unit * ((1 << 20) // len(unit))


@pytest.mark.parametrize("name", ENDLESS)
def test_a_body_without_a_length_is_refused_before_it_is_read(
    edge: Edge, client: httpx.Client, name: str
) -> None:
    """A11, A19: the transcoder would hold it; streams of messages and bodies of GET are no exception."""
    path, start, unit = ENDLESS[name]
    (envoy,) = edge.envoy_pids()
    before, seen = memory_bytes(envoy), len(edge.backends.seen)
    for verb, target in (("POST", path), ("GET", "/v1/collections")):
        try:
            response = client.request(verb, target, content=endless(start, unit))
        except httpx.TransportError:
            # Envoy had answered and gone before all was sent.
            continue
        assert (response.status_code, problem(response)["reason"]) == (411, "LENGTH_REQUIRED")
    assert memory_bytes(envoy) - before < 32 << 20
    assert len(edge.backends.seen) == seen
    # Where nothing more is sent, the answer is always read.
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    assert raw(edge, head.encode()).startswith(b"HTTP/1.1 411 ")


def test_with_chunks_taken_an_endless_text_would_be_held(edge: Edge, token: str) -> None:
    """The twin of the test above: Envoy grows with what is sent."""
    path, start, unit = ENDLESS["a text"]

    def weaken(config: Json) -> None:
        host = http_manager(config)["route_config"]["virtual_hosts"][0]
        host["routes"] = [
            route for route in host["routes"] if route.get("direct_response", {}).get("status") != 411
        ]

    with weakened(edge, weaken) as twin, http_client(twin, token) as client:
        envoy = next(
            process
            for process in psutil.process_iter(["cmdline"])
            if str(edge.folder / f"weak-{twin.port}.json") in (process.info["cmdline"] or [])
        )
        before = memory_bytes(envoy.pid)
        with contextlib.suppress(httpx.TransportError):
            client.post(path, content=endless(start, unit))
        grown = memory_bytes(envoy.pid) - before
    assert grown > 32 << 20


def test_a_length_above_the_bound_is_refused_for_streams_too(edge: Edge, client: httpx.Client) -> None:
    """A11."""
    for path in ("/v1/documents:upload", UPSERT):
        answer = raw(
            edge, f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {(1 << 20) + 1}\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
    length = {"sealcomb-length": "1", "sealcomb-chunked": "", "x-envoy-original-method": "GET"}
    forged = client.post(UPSERT, content=b" " * (5 << 20), headers=length)
    assert forged.status_code == 413


def memory_bytes(pid: int) -> int:
    """The most that a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_protobufs_json_mapping_is_what_it_is(edge: Edge, client: httpx.Client) -> None:
    """Both spellings of a field, numbers as strings, base64 of either kind; unknown fields are ignored."""
    for body, expected in (
        ('{"vectorF32": "AACAPw==", "topK": "7"}', {"vector_f32": b"\0\0\x80?", "top_k": 7}),
        ('{"vector_f32": "_-8=", "top_k": null}', {"vector_f32": b"\xff\xef"}),
        ('{"top_k": 1, "top_k": 2}', {"top_k": 2}),
        ('{"no_such_field": {"a": [1]}, "ef": 9}', {"ef": 9}),
        ("", {}),
    ):
        assert client.post(QUERY, content=body).status_code == 200, body
        assert last_query(edge) == vector_service_pb2.QueryRequest(collection="honey", **expected)


def test_long_integers_are_strings_and_bytes_are_base64_in_answers() -> None:
    """By the document, which says what the transcoder writes."""
    schemas = json.loads(OPENAPI.read_text())["components"]["schemas"]
    assert schemas["CountPointsResponse"]["properties"]["count"]["type"] == "string"
    assert schemas["Hit"]["properties"]["vector_f32"]["contentEncoding"] == "base64"


@pytest.mark.parametrize(
    "name", ["a/b", "../key", "a:query", "a:points", "?x=1", "#", "%2F", "é蜂", "a b+c", ".", ".."]
)
def test_any_name_can_be_said_in_a_path(edge: Edge, client: httpx.Client, name: str) -> None:
    """A8: percent-encoded, a name is a name whatever is in it."""
    # As raw text, since a client would tidy dots away.
    target = f"/v1/collections/{quote(name, safe='').replace('.', '%2E')}"
    response = client.get(target)
    assert response.status_code == 200
    seen = edge.backends.seen[-1]
    assert seen.path == "/sealcomb.v1.CollectionService/GetCollection"
    assert collection_service_pb2.GetCollectionRequest.FromString(seen.body).collection == name


@pytest.mark.parametrize(
    "query",
    [
        "collection=other", "collection=other&collection=third", "page_size=1&collection=other", "collection",
        "&collection=", "%63ollection=other", "Collection=other", "collection.x=other", "collection%3Dother",
        "a?collection=other",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/collections/one", "/v1/collections/one/", "/v1/collections/o%6Ee"])
def test_what_the_path_says_no_query_says(edge: Edge, client: httpx.Client, path: str, query: str) -> None:
    """A8: a proxy that reads the path reads what is done."""
    seen = len(edge.backends.seen)
    response = client.request("DELETE", f"{path}?{query}")
    assert (response.status_code, problem(response)["reason"]) == (400, "REQUEST_UNFIT")
    assert len(edge.backends.seen) == seen


@pytest.mark.parametrize("query", ["id=b", "x=1&id=b", "connection_id=b", "connectionId=b", "accountId=b"])
@pytest.mark.parametrize("operation", operations(), ids=lambda one: f"{one.verb} {one.template}")
def test_no_operation_takes_in_its_query_what_some_path_says(
    edge: Edge, client: httpx.Client, operation: Operation, query: str
) -> None:
    """A8."""
    seen = len(edge.backends.seen)
    response = client.request(operation.verb, f"{operation.path('a')}?{query}")
    assert (response.status_code, problem(response)["reason"]) == (400, "REQUEST_UNFIT")
    assert len(edge.backends.seen) == seen


def test_without_that_a_query_would_change_it(edge: Edge, token: str) -> None:
    """The twin of the tests above."""

    def weaken(config: Json) -> None:
        (host,) = http_manager(config)["route_config"]["virtual_hosts"]
        host["routes"] = [route for route in host["routes"] if "connectionId" not in json.dumps(route)]
        assert len(host["routes"]) > 10

    with weakened(edge, weaken) as twin, http_client(twin, token) as client:
        assert client.delete("/v1/collections/one?collection=other").status_code == 200
    seen = collection_service_pb2.DeleteCollectionRequest.FromString(edge.backends.seen[-1].body)
    assert seen.collection == "other"


@pytest.mark.parametrize(
    "query",
    ["nope=1", "page_size=x", "page_size=-1", "page.size=1", "page_size=99999999999", "access_token=x"],
)
def test_a_query_that_does_not_fit_is_refused(client: httpx.Client, query: str) -> None:
    response = client.get(f"/v1/collections?{query}")
    assert (response.status_code, problem(response)["reason"]) == (400, "REQUEST_UNFIT")


def test_an_upload_is_an_array_of_its_messages(edge: Edge, client: httpx.Client) -> None:
    parts: list[dict[str, object]] = [{"header": {"collection": "honey", "name": "a.txt"}}]
    parts += [{"chunk": "aGVsbG8="}] * 3
    assert client.post("/v1/documents:upload", json=parts).status_code == 200
    assert edge.backends.seen[-1].path == "/sealcomb.v1.DocumentService/UploadDocument"
    assert edge.backends.seen[-1].body.count(b"hello") == 3


def test_a_stream_is_an_array(client: httpx.Client) -> None:
    response = client.get("/v1/collections/honey/documents/x:download")
    assert (response.status_code, response.json()) == (200, [{}])


def test_a_stream_that_fails_before_its_first_message_is_a_problem(edge: Edge, client: httpx.Client) -> None:
    """After it, HTTP has said 200 already: the array just ends, which docs/http.md says how to notice."""
    edge.backends.failure = lambda: InvalidArgument("no")
    try:
        response = client.get("/v1/collections/honey/documents/x:download")
        late = client.get(f"/v1/collections/{LATE[2:].decode()}/documents/x:download")
    finally:
        edge.backends.failure = None
    assert problem(response)["reason"] == "INVALID_ARGUMENT"
    assert (late.status_code, late.json()) == (200, [{}])


def test_only_named_headers_of_a_client_go_on(edge: Edge, client: httpx.Client) -> None:
    """A9: also those by which the door speaks to the inside."""
    hostile = {
        "sealcomb-context": "forged", "sealcomb-account": "forged", "sealcomb-client": "10.0.0.1",
        "sealcomb-problem-wanted": "GET", "sealcomb-problem": "{}", "x-envoy-original-path": "/forged",
        "x-envoy-original-method": "forged", "x-request-id": "forged", "x-forwarded-for": "10.0.0.1",
        "x-http-method-override": "DELETE", "cookie": "forged", "origin": "https://forged.example",
        "grpc-status": "0", "x-grpc-web": "1", "accept": "text/forged", "referer": "https://forged.example",
    }  # fmt: skip
    assert client.get("/v1/collections/honey", headers=hostile).status_code == 200
    seen = {key: str(value) for key, value in edge.backends.seen[-1].metadata}
    assert seen.keys() <= {"user-agent", "x-request-id", "sealcomb-context", "sealcomb-problem-wanted",
                           "sealcomb-account", "content-length"}  # fmt: skip
    assert not [value for value in seen.values() if "forged" in value or value == "10.0.0.1"]
    assert seen["sealcomb-problem-wanted"] == "GET"


RAW = {
    "no such verb": b"PUT /v1/collections HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "HEAD": b"HEAD /v1/whoami HTTP/1.1\r\nhost: a\r\n\r\n",
    "TRACE": b"TRACE /v1/whoami HTTP/1.1\r\nhost: a\r\n\r\n",
    "two lengths": b"POST /v1/key:rotate HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n"
    b"content-length: 5\r\n\r\nGET /",
    "length and chunks": b"POST /v1/key:rotate HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/whoami HTTP/1.1\r\n\r\n",
    "a strange encoding": b"POST /v1/key:rotate HTTP/1.1\r\nhost: a\r\n"
    b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"GET /v1/whoami HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
    "a space before the colon": b"GET /v1/whoami HTTP/1.1\r\nhost : a\r\n\r\n",
    "no host": b"GET /v1/whoami HTTP/1.1\r\n\r\n",
    "HTTP/1.0": b"GET /v1/whoami HTTP/1.0\r\n\r\n",
    "h2c": b"GET /v1/whoami HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    b"http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    "a websocket": b"GET /v1/whoami HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "NUL": b"GET /v1/who\0ami HTTP/1.1\r\nhost: a\r\n\r\n",
    "no HTTP": b"\x16\x03\x01 nonsense\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_http_1_that_is_not_plain_is_refused(edge: Edge, token: str, name: str) -> None:
    """A21: no smuggling, no upgrade, no tunnel; at most one answer, and nothing goes inside."""
    before = len(edge.backends.seen)
    answer = raw(edge, RAW[name])
    status_lines = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert len(status_lines) <= 1, answer
    assert not [line for line in status_lines if line[9:12] in (b"200", b"101")], answer
    assert len(edge.backends.seen) == before
    if name == "HEAD":
        assert answer.endswith(b"\r\n\r\n"), "an answer to HEAD has no body"
    with http_client(edge, token) as client:
        assert client.get("/v1/whoami").status_code == 200


def raw(edge: Edge, sent: bytes) -> bytes:
    """What comes back for some bytes on a connection of their own."""
    context = ssl.create_default_context(cafile=str(edge.installation.edge_ca_file))
    context.set_alpn_protocols(["http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", edge.http_port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(sent)
        tls.settimeout(1.0)
        got = b""
        try:
            while data := tls.recv(65536):
                got += data
        except (TimeoutError, ConnectionResetError, ssl.SSLError):
            pass
    return got


def test_the_second_door_is_tls_1_3_too(edge: Edge) -> None:
    """A13."""
    context = ssl.create_default_context(cafile=str(edge.installation.edge_ca_file))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", edge.http_port), timeout=5) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_without_its_setting_there_is_no_second_door(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        running_edge(tmp_path_factory.mktemp("closed"), edge_http_listen="") as closed,
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(("127.0.0.1", closed.http_port), timeout=5)


def test_the_document_is_bounded_though_nobody_is_known(edge: Edge) -> None:
    """A16: it is large, needs no token, and is not asked for often."""
    with http_client(edge) as client:
        for _ in range(400):
            answer = client.get("/openapi.json")
            if answer.status_code != 200:
                break
        assert (answer.status_code, problem(answer)["status"]) == (429, 429)
        assert answer.headers["retry-after"] == "1"
        time.sleep(1.1)
        assert client.get("/openapi.json").status_code == 200


def test_without_its_limit_the_document_is_given_to_any_flood(edge: Edge) -> None:
    """The twin of the test above."""

    def weaken(config: Json) -> None:
        (host,) = http_manager(config)["route_config"]["virtual_hosts"]
        (route,) = [one for one in host["routes"] if one["name"] == "/openapi.json"]
        del route["typed_per_filter_config"]["local_ratelimit"]

    with weakened(edge, weaken) as twin, http_client(twin) as client:
        assert {client.get("/openapi.json").status_code for _ in range(60)} == {200}
