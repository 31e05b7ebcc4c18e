"""gRPC-Web and the rule of whose pages may call, with frames written by hand."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from urllib.parse import unquote

import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from pydantic import ValidationError

from sealcomb.v1 import token_service_pb2
from services.gateway.config import GatewaySettings
from tests.gateway.http_door import http_client
from tests.gateway.rig import Edge, running_edge

WHOAMI = "/sealcomb.v1.TokenService/WhoAmI"
QUERY = "/sealcomb.v1.VectorService/Query"
TYPE = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
ORIGIN, OTHER = "https://app.example.com", "https://app.example.com.evil.example"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    origins = f"{ORIGIN},http://localhost:3000"
    with running_edge(tmp_path_factory.mktemp("web"), edge_cors_origins=origins) as running:
        yield running


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """With the default: no origin at all."""
    with running_edge(tmp_path_factory.mktemp("closed")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


def frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def frames(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """The messages and the trailers of a body."""
    messages, trailers = [], {}
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        content, body = body[5 : 5 + length], body[5 + length :]
        assert len(content) == length, "cut off"
        if flags & 0x80:
            lines = (line.partition(":") for line in content.decode().splitlines() if line)
            trailers = {name.strip().lower(): value.strip() for name, _, value in lines}
        else:
            messages.append(content)
    return messages, trailers


def outcome(response: httpx.Response) -> tuple[int, str, str]:
    """gRPC's code, message and reason, as a browser's library reads them."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/grpc-web")
    _, trailers = frames(response.content)
    told = trailers or {name.lower(): value for name, value in response.headers.items()}
    info = error_details_pb2.ErrorInfo()
    if details := told.get("grpc-status-details-bin"):
        status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
        assert any(detail.Unpack(info) for detail in status.details)
    return int(told["grpc-status"]), unquote(told.get("grpc-message", "")), info.reason


def test_a_call_is_answered_in_frames(edge: Edge, token: str) -> None:
    with http_client(edge, token) as client:
        response = client.post(WHOAMI, headers=TYPE, content=frame(b""))
    messages, trailers = frames(response.content)
    assert token_service_pb2.WhoAmIResponse.FromString(messages[0]).account_id
    assert (len(messages), trailers["grpc-status"]) == (1, "0")


def test_the_text_form_is_base64(edge: Edge, token: str) -> None:
    kind = {"content-type": "application/grpc-web-text", "accept": "application/grpc-web-text"}
    with http_client(edge, token) as client:
        response = client.post(WHOAMI, headers=kind, content=base64.b64encode(frame(b"")))
    # Each frame is encoded on its own, with its own padding.
    parts = response.text.replace("=g", "= g").split(" ")
    messages, trailers = frames(b"".join(base64.b64decode(part) for part in parts))
    assert (len(messages), trailers["grpc-status"]) == (1, "0")


def test_a_refusal_has_grpcs_status_and_reason(edge: Edge, token: str) -> None:
    narrow = edge.create_token(token, label="a", scopes=["audit"]).token
    cases = {
        (None, WHOAMI): (16, "TOKEN_MISSING"),
        ("nonsense", WHOAMI): (16, "TOKEN_MALFORMED"),
        (narrow, QUERY): (7, "SCOPE_MISSING"),
        (token, "/sealcomb.v1.TokenService/Nothing"): (12, "UNIMPLEMENTED"),
        (token, "/sealcomb.internal.v1.KeyReleaseService/GetDataKey"): (12, "UNIMPLEMENTED"),
        (token, QUERY + "/"): (12, "UNIMPLEMENTED"),
    }
    before = len(edge.backends.seen)
    for (used, path), expected in cases.items():
        with http_client(edge, used) as client:
            code, _, reason = outcome(client.post(path, headers=TYPE, content=frame(b"")))
        assert (code, reason) == expected, path
    assert len(edge.backends.seen) == before


def test_a_service_error_and_a_large_message_are_told_as_over_grpc(edge: Edge, token: str) -> None:
    with http_client(edge, token) as client:
        create = "/sealcomb.v1.TokenService/CreateToken"
        wrong = token_service_pb2.CreateTokenRequest(label="a", scopes=["no"]).SerializeToString()
        assert outcome(client.post(create, headers=TYPE, content=frame(wrong)))[::2] == (
            3,
            "INVALID_ARGUMENT",
        )
        large = client.post(QUERY, headers=TYPE, content=frame(bytes(5 << 20)))
        assert outcome(large)[::2] == (8, "MESSAGE_TOO_LARGE")


def preflight(edge: Edge, origin: str, path: str = WHOAMI) -> httpx.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-grpc-web",
    }
    with http_client(edge) as client:
        return client.options(path, headers=asked)


@pytest.mark.parametrize("path", [WHOAMI, "/v1/collections/honey:search"])
def test_a_listed_origin_may_call_and_still_needs_a_token(edge: Edge, token: str, path: str) -> None:
    allowed = preflight(edge, ORIGIN, path)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    headers = TYPE if path == WHOAMI else {}
    for used, ok in ((token, True), (None, False)):
        with http_client(edge, used) as client:
            body = frame(b"") if path == WHOAMI else b"{}"
            response = client.post(path, headers={"origin": ORIGIN, **headers}, content=body)
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        done = outcome(response)[0] == 0 if path == WHOAMI else response.status_code == 200
        assert done == ok


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "http://app.example.com", ORIGIN + ":8443", "https://APP.example.com", "*"]
)
def test_another_origin_is_refused(edge: Edge, token: str, origin: str) -> None:
    refused = preflight(edge, origin)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    with http_client(edge, token) as client:
        response = client.post(WHOAMI, headers={"origin": origin, **TYPE}, content=frame(b""))
    # A page of that origin cannot read it.
    assert "access-control-allow-origin" not in response.headers


def test_by_default_no_origin_is_listed(closed: Edge) -> None:
    """The twin of the test of a listed origin: without the setting the same page is refused."""
    refused = preflight(closed, ORIGIN)
    assert refused.status_code == 404
    assert not [name for name in refused.headers if name.startswith("access-control")]


def test_a_preflight_reaches_nobody(edge: Edge, token: str) -> None:
    before = len(edge.backends.seen)
    with http_client(edge, token) as client:
        for path in (WHOAMI, QUERY, "/v1/collections", "/anything"):
            for origin in (ORIGIN, OTHER):
                client.options(path, headers={"origin": origin, "access-control-request-method": "POST"})
            without_origin = client.options(path, headers={"access-control-request-method": "POST"})
            assert without_origin.status_code >= 400
    assert len(edge.backends.seen) == before


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example.com", "app.example.com", "https://a.example/", "null"]
)
def test_only_exact_origins_can_be_set(edge: Edge, origins: str) -> None:

    with pytest.raises(ValidationError, match="edge_cors_origins"):
        GatewaySettings(edge_cors_origins=origins)  # type: ignore[call-arg]
