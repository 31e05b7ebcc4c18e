"""A8 at the second door: what policy decides about is what is called, whatever a path looks like."""

from __future__ import annotations

import http.client
import random
import ssl
from collections.abc import Iterator

import pytest

from services.common.clock import SystemClock
from services.common.context import HEADER, ContextVerifier
from services.common.methods import PUBLIC_METHODS, Scope
from tests.gateway.http_door import VERBS, Operation, expected_method, operations
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import Json, http_manager, weakened

_REQUESTS = 1500
_PIECES = (
    "/", "//", "%2f", "%2F", "%252f", "\\", ".", "..", "%2e%2e", ";", ";x=1", ":", "%3a", "%3A", "%00", "%0a",
    "?", "?collection=b", "?id=c&id=d", "&", "=", "#", "%23", "%3f", "%", "%zz", "%c3%28", "%e2%80%a8", "~",
    "*", "{collection}", "{collection=**}", "**", "+", "@", "$", "'", "(", ")", "V1", "v1", "v2", "x",
    "collections", "points", "documents", "key", "sealcomb.v1.KeyService", "DisableKey",
    "/sealcomb.v1.KeyService/DisableKey", *(":" + verb for verb in sorted(VERBS)),
)  # fmt: skip
_VERBS = ("GET", "POST", "DELETE", "PATCH", "PUT", "HEAD", "OPTIONS", "TRACE", "get", "Post", "PROPFIND")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("json")) as running:
        yield running


class Raw:
    """Requests whose target goes out as it is."""

    def __init__(self, edge: Edge, token: str | None) -> None:
        context = ssl.create_default_context(cafile=str(edge.installation.edge_ca_file))
        context.set_alpn_protocols(["http/1.1"])
        self._connection = http.client.HTTPSConnection(
            "localhost", edge.http_port, timeout=10, context=context
        )
        self.body = b""
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def status(self, verb: str, target: str) -> int:
        """The status of the answer; 0 if the connection was ended instead."""
        try:
            self._connection.request(verb, target, headers=self._headers)
            answer = self._connection.getresponse()
            self.body = answer.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            return 0
        return answer.status


def mutated(chance: random.Random, operation: Operation) -> tuple[str, str]:
    """A verb and a path near those of an operation."""
    path = operation.path(chance.choice(("x", "a%2Fb", "a:query", "..", "%00", "%C3%A9")))
    for _ in range(chance.randrange(0, 4)):
        at = chance.randrange(len(path) + 1)
        end = min(len(path), at + chance.choice((0, 0, 1, 3)))
        path = path[:at] + chance.choice(_PIECES) + path[end:]
    verb = operation.verb if chance.random() < 0.7 else chance.choice(_VERBS)
    return verb, (path if path.startswith("/") else "/" + path)


def test_a_path_reaches_the_method_that_it_names_and_no_other(edge: Edge) -> None:
    """A8: held against an independent reading of the OpenAPI document, path by path."""
    token = edge.create_account().token
    chance = random.Random(20261124)
    everything = operations()
    reached = 0
    with Raw(edge, token) as client:
        for _ in range(_REQUESTS):
            verb, target = mutated(chance, chance.choice(everything))
            edge.backends.seen.clear()
            status = client.status(verb, target)
            expected = expected_method(verb, target)
            for seen in edge.backends.seen:
                reached += 1
                assert seen.path == expected, (verb, target, status)
            assert len(edge.backends.seen) <= 1
            if expected is None:
                assert status in (0, 400, 404), (verb, target, status)
    assert reached > _REQUESTS / 10, "too few were calls at all"


def test_what_is_called_is_within_the_tokens_scope_and_was_decided_for_that_method(edge: Edge) -> None:
    """A8: the context that policy signed is for the very method that the service was sent."""
    token = edge.create_token(edge.create_account().token, label="a", scopes=["read"]).token
    verifier = ContextVerifier.from_folder("vectorstore", edge.installation.context_trust_dir, SystemClock())
    chance = random.Random(4711)
    everything = operations()
    edge.backends.seen.clear()
    with Raw(edge, token) as client:
        for _ in range(_REQUESTS // 2):
            client.status(*mutated(chance, chance.choice(everything)))
    assert [seen for seen in edge.backends.seen if seen.service != "keyvault"]
    for seen in edge.backends.seen:
        assert PUBLIC_METHODS[seen.path].scope is Scope.READ, seen.path
        signed = verifier.verify(str(dict(seen.metadata)[HEADER])) if seen.service != "keyvault" else None
        assert signed is None or signed.method == seen.path


def test_no_path_goes_in_without_a_token(edge: Edge) -> None:
    chance = random.Random(99)
    everything = operations()
    edge.backends.seen.clear()
    with Raw(edge, None) as client:
        statuses = {client.status(*mutated(chance, chance.choice(everything))) for _ in range(_REQUESTS // 4)}
    assert edge.backends.seen == []
    assert 200 not in statuses
    assert 401 in statuses


def test_were_json_read_after_policy_a_call_would_pass_it_by(edge: Edge) -> None:
    """The twin: the call goes in without policy's word, to where the service's own guard refuses it."""

    def weaken(config: Json) -> None:
        filters = http_manager(config)["http_filters"]
        at = next(number for number, one in enumerate(filters) if one["name"] == "ext_authz")
        filters.insert(0, filters.pop(at))

    with weakened(edge, weaken) as twin, Raw(twin, None) as client:
        status = client.status("GET", "/v1/collections/honey")
    assert status == 401
    assert b'"CONTEXT_REFUSED"' in client.body
