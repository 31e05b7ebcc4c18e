"""A client of the second door, and an account of its own of which path stands for which method."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from tests.gateway.rig import ROOT, Edge

OPENAPI = ROOT / "services" / "gateway" / "openapi.json"


@contextmanager
def http_client(edge: Edge, token: str | None = None, *, port: int | None = None) -> Iterator[httpx.Client]:
    """A client of the edge's HTTP door."""
    context = ssl.create_default_context(cafile=str(edge.installation.edge_ca_file))
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    with httpx.Client(
        verify=context,
        base_url=f"https://localhost:{port or edge.http_port}",
        headers=headers,
        timeout=20,
        trust_env=False,
    ) as client:
        yield client


@dataclass(frozen=True)
class Operation:
    """One operation of the OpenAPI document."""

    verb: str
    template: str
    method: str
    has_body: bool

    def path(self, value: str = "x") -> str:
        """The path with the same value for each variable."""
        parts = [value if part.startswith("{") else part for part in _cut(self.template)]
        return "".join(parts)


def operations(document: Path = OPENAPI) -> list[Operation]:
    """Every operation that the document describes."""
    found = []
    for template, verbs in json.loads(document.read_text())["paths"].items():
        for verb, operation in verbs.items():
            service, method = operation["operationId"].split("_")[:2]
            path = f"/sealcomb.v1.{service}/{method}"
            found.append(Operation(verb.upper(), template, path, "requestBody" in operation))
    return found


def expected_method(verb: str, raw_path: str) -> str | None:
    """The method that a request is for, read from the document as AIP-127 would have it."""
    path, custom_verb = _split_verb(raw_path.partition("?")[0])
    # One slash at the end says nothing.
    given = path.removesuffix("/").split("/")
    for operation in operations():
        wanted, wanted_verb = _split_verb(operation.template)
        if operation.verb == verb and wanted_verb == custom_verb and _fits(wanted.split("/"), given):
            return operation.method
    return None


def _fits(wanted: list[str], given: list[str]) -> bool:
    return len(wanted) == len(given) and all(
        bool(part) if must.startswith("{") else must == part for must, part in zip(wanted, given, strict=True)
    )


def _split_verb(path: str) -> tuple[str, str]:
    # A colon in the last segment begins a custom verb if some method has that verb; else it is of a name.
    head, colon, verb = path.rpartition(":")
    return (head, verb) if colon and "/" not in verb and verb in VERBS else (path, "")


VERBS = {operation.template.rpartition(":")[2] for operation in operations() if ":" in operation.template}


def _cut(template: str) -> list[str]:
    parts: list[str] = []
    for piece in template.split("{"):
        name, closed, rest = piece.partition("}")
        parts += ["{" + name + "}", rest] if closed else [piece]
    return parts


def decoded(segment: str) -> str:
    """A segment of a path as the name that it stands for."""
    return unquote(segment)


def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem in an answer, which must be one by RFC 9457 and agree with its status line."""
    assert response.headers["content-type"] == "application/problem+json", (response.headers, response.text)
    body = response.json()
    assert {"type", "title", "status", "detail", "code", "reason", "request_id"} <= body.keys(), body
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["type"].startswith("https://sealcomb.dev/problems/")
    assert isinstance(body, dict)
    return body
