"""A5, A9: what a client puts into headers does not pass for ours, and does not pass when it is too much."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.envoy.headers import CLIENT_HEADERS, unlisted_pattern
from tests.gateway.raw_http2 import EMPTY_MESSAGE, grpc_headers, raw_connection
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import Json, manager, routes, weakened

QUERY = "/sealcomb.v1.VectorService/Query"
INTERNAL = (
    "sealcomb-context", "sealcomb-account", "sealcomb-client", "sealcomb-anything", "x-request-id",
    "x-account-id", "x-forwarded-for", "x-forwarded-client-cert", "x-forwarded-proto", "x-forwarded-host",
    "x-real-ip", "forwarded",
    "x-envoy-original-path", "x-envoy-expected-rq-timeout-ms", "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-max-retries", "x-envoy-external-address", "x-envoy-auth-headers-to-remove", "x-original-url",
    "x-rewrite-url", "x-http-method-override", "via", "cookie", "grpc-trace-bin", "traceparent",
)  # fmt: skip
CANARY = "canary-of-a-client"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("headers")) as running:
        yield running


@pytest.fixture(scope="module")
def token(edge: Edge) -> str:
    return edge.create_account().token


def sent(
    edge: Edge, token: str, *extra: tuple[str, str], trailers: tuple[tuple[str, str], ...] = ()
) -> dict[str, list[str]]:
    """The metadata that a service saw of a call; empty if none arrived."""
    before = len(edge.backends.seen)
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        stream = connection.send(grpc_headers(QUERY, *extra, token=token), EMPTY_MESSAGE, trailers=trailers)
        connection.reply(stream)
    if len(edge.backends.seen) == before:
        return {}
    seen: dict[str, list[str]] = {}
    for name, value in edge.backends.seen[-1].metadata:
        seen.setdefault(name, []).append(value if isinstance(value, str) else value.decode("latin-1"))
    return seen


def spellings(name: str) -> Iterator[str]:
    yield name
    yield name + "-bin"
    yield name.replace("-", "_")
    yield name.replace("-", "_", 1)


@pytest.mark.parametrize("name", INTERNAL)
def test_no_spelling_of_an_inner_header_reaches_a_service(edge: Edge, token: str, name: str) -> None:
    """A9: also twice, and in trailers."""
    for spelling in spellings(name):
        value = "Y2FuYXJ5LW9mLWEtY2xpZW50" if spelling.endswith("-bin") else CANARY
        for extra in (((spelling, value),), ((spelling, value), (spelling, value))):
            seen = sent(edge, token, *extra)
            assert seen, "a stripped header is no reason to refuse the call"
            assert not [key for key, values in seen.items() if any(CANARY in one for one in values)], spelling
            assert (
                len(seen["sealcomb-context"])
                == len(seen["sealcomb-account"])
                == len(seen["x-request-id"])
                == 1
            )
    seen = sent(edge, token, trailers=((name, CANARY),))
    assert CANARY not in str(seen)


@pytest.mark.parametrize(
    "name",
    [
        "Sealcomb-Context",
        "SEALCOMB-ACCOUNT",
        "sealcomb-context ",
        " sealcomb-context",
        "sealcomb-context\0",
        "sealcomb-context:",
    ],
)
def test_a_name_that_http2_forbids_ends_the_call(edge: Edge, token: str, name: str) -> None:
    """A9: upper case, spaces and control characters."""
    assert sent(edge, token, (name, CANARY)) == {}


def test_the_token_itself_never_goes_inside(edge: Edge, token: str) -> None:
    """B3."""
    seen = sent(edge, token)
    assert "authorization" not in seen
    assert token not in str(seen)


def test_only_listed_headers_and_our_own_reach_a_service(edge: Edge, token: str) -> None:
    """A9: an allow-list, so that a name nobody thought of is stripped too."""
    seen = sent(edge, token, ("x-new", "1"), ("priority", "u=1"), ("accept", "*/*"), ("range", "bytes=0-1"))
    ours = {"sealcomb-context", "sealcomb-account", "x-request-id"}
    assert set(seen) <= ours | set(CLIENT_HEADERS)


def test_a_second_authorization_header_is_no_way_in(edge: Edge, token: str) -> None:
    assert sent(edge, token, ("authorization", f"Bearer {token}")) == {}


def test_without_the_allow_list_a_client_names_itself(edge: Edge, token: str) -> None:
    """Twin of the tests above."""

    def weaken(config: Json) -> None:
        manager(config).pop("early_header_mutation_extensions")

    with weakened(edge, weaken) as twin:
        assert sent(twin, token, ("x-account-id", CANARY))["x-account-id"] == [CANARY]


@given(st.text(st.sampled_from("abceghinoprstuz-x"), max_size=22))
def test_the_pattern_matches_exactly_what_is_not_listed(name: str) -> None:
    assert (re.fullmatch(unlisted_pattern(), name) is not None) is (name not in CLIENT_HEADERS)


def test_the_pattern_spares_listed_names_and_no_neighbour_of_one() -> None:
    pattern = re.compile(unlisted_pattern())
    for name in CLIENT_HEADERS:
        assert not pattern.fullmatch(name)
        for neighbour in (name[:-1], name + "x", "x" + name, name + "-bin", name.replace("-", "_") + "_"):
            assert pattern.fullmatch(neighbour) or neighbour in CLIENT_HEADERS, neighbour
    for pseudo in (":method", ":path", ":authority", ":scheme"):
        assert not pattern.fullmatch(pseudo)


@pytest.mark.parametrize("kib", [4, 9, 15])
def test_metadata_within_the_limit_does_no_harm(edge: Edge, token: str, kib: int) -> None:
    """A5."""
    assert edge.call(QUERY, token, metadata=(("x-large", "a" * 1024 * kib),)).code is grpc.StatusCode.OK


@pytest.mark.parametrize("kib", [17, 63, 64, 1000])
def test_metadata_above_the_limit_is_refused_unforwarded_and_unechoed(
    edge: Edge, token: str, kib: int
) -> None:
    """A5: RESOURCE_EXHAUSTED; only what goes on and on ends the connection."""
    before = len(edge.backends.seen)
    # A name of our own for the size changes nothing.
    large = (("x-large", CANARY + "a" * 1024 * kib), ("sealcomb-size", "1"))
    answer = edge.call(QUERY, token, metadata=large)
    if kib < 64:
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "METADATA_TOO_LARGE")
    else:
        assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert CANARY not in str(answer)
    assert len(edge.backends.seen) == before


def test_more_than_64_headers_are_refused(edge: Edge, token: str) -> None:
    """A5."""
    assert sent(edge, token, *[(f"x-{number}", "1") for number in range(50)])
    assert not sent(edge, token, *[(f"x-{number}", "1") for number in range(64)])


def test_with_larger_limits_the_same_metadata_passes(edge: Edge, token: str) -> None:
    """Twin of the two tests above."""

    def weaken(config: Json) -> None:
        routes(config)[:] = [one for one in routes(config) if one.get("direct_response") != {"status": 431}]
        manager(config)["common_http_protocol_options"]["max_headers_count"] = 200

    with weakened(edge, weaken) as twin:
        assert twin.call(QUERY, token, metadata=(("x-large", "a" * 1024 * 60),)).code is grpc.StatusCode.OK
        assert sent(twin, token, *[(f"x-{number}", "1") for number in range(64)])


def test_replies_name_no_server_and_no_inner_part(edge: Edge, token: str) -> None:
    """A17."""
    with raw_connection(edge.port, edge.installation.edge_ca_file) as connection:
        for path in (QUERY, "/a.B/C"):
            headers = connection.reply(
                connection.send(grpc_headers(path, token=token), EMPTY_MESSAGE)
            ).headers
            assert not [
                name for name in headers if name == "server" or name.startswith(("x-envoy", "sealcomb"))
            ]
