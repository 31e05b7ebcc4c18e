"""A8: no form of a path but the exact one reaches a service. Real Envoy, raw HTTP/2."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import grpc
import pytest

from services.common.methods import EDGE_METHODS, INGEST, PUBLIC_METHODS, VECTORSTORE
from tests.gateway.raw_http2 import EMPTY_MESSAGE, Reply, grpc_headers, raw_connection
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import Json, manager, routes, weakened

QUERY = "/sealcomb.v1.VectorService/Query"

# What is no valid HTTP/2 path closes the connection; a fragment is a bad request; the rest no such method.
FORMS: dict[str, Callable[[str], str]] = {
    "no leading slash": lambda path: path[1:],
    "two leading slashes": lambda path: "/" + path,
    "trailing slash": lambda path: path + "/",
    "two inner slashes": lambda path: "//".join(path.rsplit("/", 1)),
    "query": lambda path: path + "?x=1",
    "empty query": lambda path: path + "?",
    "fragment": lambda path: path + "#x",
    "one letter encoded": lambda path: path[:-1] + f"%{ord(path[-1]):02x}",
    "encoded slash": lambda path: "/" + path[1:].replace("/", "%2f"),
    "encoded dot": lambda path: path.replace(".", "%2e"),
    "lower case": str.lower,
    "upper case": str.upper,
    "unicode look-alike": lambda path: path.replace("e", "\u0435"),
    "NUL": lambda path: path + "\0",
    "encoded NUL": lambda path: path + "%00",
    "dot segment": lambda path: "/." + path,
    "parent segment": lambda path: "/x/.." + path,
    "encoded parent segment": lambda path: "/x/%2e%2e" + path,
    "backslash": lambda path: "/" + path[1:].replace("/", "\\"),
    "parameter": lambda path: path + ";v=1",
    "space": lambda path: path + " ",
    "absolute": lambda path: "https://localhost" + path,
    "suffix": lambda path: path + "X",
    "prefix": lambda path: path[:-1],
}
CLOSING = ("no leading slash", "NUL", "space", "absolute")
# Every owner, and unary as well as streaming methods.
SAMPLE = (QUERY, "/sealcomb.v1.DocumentService/UploadDocument", "/sealcomb.v1.KeyService/GetKey",
          "/sealcomb.v1.AccountService/CreateAccount", "/sealcomb.v1.TokenService/WhoAmI")  # fmt: skip


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("paths")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


def send(edge: Edge, path: str, token: str | None) -> Reply:
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        return connection.reply(connection.send(grpc_headers(path, token=token), EMPTY_MESSAGE))


def refused(reply: Reply) -> bool:
    return reply.closed or reply.reset is not None or reply.grpc_status in ("12", "13")


@pytest.mark.parametrize("form", FORMS)
def test_no_form_but_the_exact_one_reaches_a_service(edge: Edge, token: str, form: str) -> None:
    """A8."""
    # A closed connection takes Envoy a second, so those forms get fewer methods.
    for path in SAMPLE[:2] if form in CLOSING else SAMPLE:
        before = len(edge.backends.seen)
        reply = send(edge, FORMS[form](path), token)
        assert refused(reply), (path, reply)
        assert len(edge.backends.seen) == before


def test_an_unlisted_method_is_unimplemented_with_and_without_a_token(edge: Edge, token: str) -> None:
    """A8: before policy is asked, so the answer does not depend on the token."""
    inner = "/sealcomb.internal.v1.KeyReleaseService/GetDataKey"
    for path in (inner, "/sealcomb.v1.VectorService/Drop", "/grpc.health.v1.Health/Watch", "/a.B/C", "/"):
        answers = [edge.call(path, given) for given in (token, None, "nonsense")]
        assert {answer.code for answer in answers} == {grpc.StatusCode.UNIMPLEMENTED}, path
        assert {answer.reason for answer in answers} == {"UNIMPLEMENTED"}


def test_any_other_http_method_reaches_nothing(edge: Edge, token: str) -> None:
    """A8, A21."""
    for http_method in ("GET", "PUT", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"):
        headers = [
            (name, http_method if name == ":method" else value)
            for name, value in grpc_headers(QUERY, token=token)
        ]
        before = len(edge.backends.seen)
        with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
            reply = connection.reply(connection.send(headers, EMPTY_MESSAGE))
        assert (
            reply.closed or reply.reset is not None or reply.http_status == "404" or reply.grpc_status == "12"
        )
        assert len(edge.backends.seen) == before, http_method


def test_random_paths_reach_nothing(edge: Edge, token: str) -> None:
    """A8: edits of listed paths, a few hundred on one connection each way."""
    rng = random.Random(8)
    before = len(edge.backends.seen)
    alphabet = "abcXYZ012./_-%?&=:@!$'()*+,~"
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        for _ in range(300):
            path = list(rng.choice(list(EDGE_METHODS)))
            for _ in range(rng.randint(1, 3)):
                path.insert(rng.randint(1, len(path)), rng.choice(alphabet))
            text = "".join(path)
            reply = connection.reply(connection.send(grpc_headers(text, token=token), EMPTY_MESSAGE))
            assert reply.grpc_status == "12", text
    assert len(edge.backends.seen) == before


def test_every_listed_method_is_routed_to_its_owner(edge: Edge, token: str) -> None:
    """The other side of A8: the table, and no more."""
    for path, method in PUBLIC_METHODS.items():
        if method.owner in (VECTORSTORE, INGEST):
            assert edge.call(path, token).code is grpc.StatusCode.OK, path
            assert (edge.backends.seen[-1].service, edge.backends.seen[-1].path) == (method.owner, path)


def test_without_the_match_on_the_whole_path_the_form_test_goes_red(edge: Edge, token: str) -> None:
    """Twin of the forms: a query is then routed, and only policy, the second lock, refuses it (status 7)."""

    def weaken(config: Json) -> None:
        for route in routes(config):
            if "path" in route["match"]:
                route["match"].pop("headers")

    with weakened(edge, weaken) as twin:
        reply = send(twin, QUERY + "?x=1", token)
        assert not refused(reply)
        assert reply.grpc_status == "7"


def test_with_policy_asked_about_unlisted_paths_the_answer_is_another(edge: Edge, token: str) -> None:
    """Twin of the unlisted methods: policy is then asked, and refuses as the second lock."""

    def weaken(config: Json) -> None:
        routes(config)[-1].pop("typed_per_filter_config")

    with weakened(edge, weaken) as twin:
        for given in (None, token):
            assert twin.call("/a.B/C", given).code is grpc.StatusCode.PERMISSION_DENIED


def test_with_neither_lock_an_odd_path_reaches_a_service(edge: Edge, token: str) -> None:
    """Twin of the forms, both locks off: the odd path goes to vectorstore, whose own guard refuses it."""

    def weaken(config: Json) -> None:
        for route in routes(config):
            if "path" in route["match"]:
                route["match"].pop("headers")
        filters = manager(config)["http_filters"]
        filters[:] = [one for one in filters if one["name"] != "ext_authz"]
        for route in routes(config):
            route.get("typed_per_filter_config", {}).pop("ext_authz", None)

    with weakened(edge, weaken) as twin:
        assert send(twin, QUERY + "?x=1", token).headers["grpc-message"] == "no such method"
        # The service said so, not the edge: its plain status has no details of ours.
        assert "grpc-status-details-bin" not in send(twin, QUERY + "?x=1", token).headers
