"""B1, A20: a client's certificate, its address and its pace, by configuration alone."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import TestCa, dns
from tests.gateway.raw_http2 import EMPTY_MESSAGE, RawConnection, Reply, grpc_headers
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import Json, weakened

QUERY = "/sealcomb.v1.VectorService/Query"
_FEW = {"failures_per_second": "0.01", "failure_burst": "3"}


@contextmanager
def connection(
    edge: Edge, *, certificate: tuple[Path, Path] | None = None, first: bytes = b""
) -> Iterator[RawConnection]:
    """A connection that may begin with words of a balancer and show a certificate."""
    context = ssl.create_default_context(cafile=str(edge.installation.edge_ca_file))
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(*certificate)
    with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as plain:
        plain.sendall(first)
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            yield RawConnection(tls)


def ask(edge: Edge, token: str, *extra: tuple[str, str], **how: object) -> Reply:
    """One call on a connection of its own; one that is refused counts as closed."""
    try:
        with connection(edge, **how) as own:  # type: ignore[arg-type]
            return own.reply(own.send(grpc_headers(QUERY, *extra, token=token), EMPTY_MESSAGE))
    except OSError:
        return Reply(closed=True)


def issued(ca: TestCa, folder: Path, name: str) -> tuple[Path, Path]:
    """A client's certificate and key as files."""
    folder.mkdir(exist_ok=True)
    material = ca.issue([dns(name)])
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(material.certificate)
    paths[1].write_bytes(material.key)
    return paths


def authority(ca: TestCa) -> bytes:
    return ca.issue([dns("x")]).ca


@pytest.fixture(scope="module")
def plain_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("plain"), **_FEW) as running:
        yield running


@pytest.fixture(scope="module")
def hops_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("hops"), edge_trusted_hops="1", **_FEW) as running:
        yield running


def failures_until_refused(edge: Edge, *values: str, most: int = 12) -> int:
    """How many calls with bad tokens are answered as such before the address is refused, of `most`."""
    for count in range(most):
        value = values[count % len(values)] if values else ""
        extra = (("x-forwarded-for", value),) if value else ()
        if ask(edge, "sealcomb_acc_x", *extra).grpc_status == "8":
            return count
    return most


def test_a_forwarded_address_that_nobody_asked_for_changes_nothing(plain_edge: Edge) -> None:
    spoofs = [f"203.0.113.{number}" for number in range(12)]
    assert failures_until_refused(plain_edge, *spoofs) <= 4


def test_behind_one_proxy_the_last_forwarded_address_counts(hops_edge: Edge) -> None:
    """Twin of the test above; and what a client put there before the proxy did counts for nothing."""
    many = [f"203.0.113.{number}" for number in range(12)]
    assert failures_until_refused(hops_edge, *many) == 12
    spoofs = [f"198.51.100.{number}, 192.0.2.1" for number in range(12)]
    assert failures_until_refused(hops_edge, *spoofs) <= 4


def test_the_proxys_words_do_not_reach_a_service(hops_edge: Edge) -> None:
    token = hops_edge.create_account().token
    assert ask(hops_edge, token, ("x-forwarded-for", "203.0.113.77")).grpc_status == "0"
    names = {name for name, _ in hops_edge.backends.seen[-1].metadata}
    assert not names & {"x-forwarded-for", "x-envoy-external-address", "sealcomb-client"}


def test_by_proxy_protocol_the_balancers_word_counts_and_is_needed(tmp_path: Path) -> None:
    def words(address: str) -> bytes:
        return f"PROXY TCP4 {address} 127.0.0.1 40000 443\r\n".encode()

    with running_edge(tmp_path, False, edge_proxy_protocol="true", **_FEW) as edge:
        wait_for_answer(edge, first=words("192.0.2.9"))
        for number in range(12):
            reply = ask(edge, "sealcomb_acc_x", first=words(f"203.0.113.{number}"))
            assert reply.grpc_status == "16"
        statuses = [ask(edge, "sealcomb_acc_x", first=words("192.0.2.1")).grpc_status for _ in range(5)]
        assert "8" in statuses
        assert ask(edge, "sealcomb_acc_x").closed


def test_a_demanded_certificate_opens_the_connection_and_nothing_else(tmp_path: Path) -> None:
    ca, other = TestCa.make(), TestCa.make()
    good, foreign = issued(ca, tmp_path / "clients", "good"), issued(other, tmp_path / "clients", "foreign")
    ca_file = tmp_path / "client-ca" / "ca.pem"
    ca_file.parent.mkdir()
    ca_file.write_bytes(authority(ca))
    with running_edge(tmp_path, False, edge_client_ca_file=str(ca_file)) as edge:
        wait_for_answer(edge, certificate=good)
        assert ask(edge, "sealcomb_acc_x", certificate=good).grpc_status == "16"
        assert ask(edge, "sealcomb_acc_x").closed
        assert ask(edge, "sealcomb_acc_x", certificate=foreign).closed
        fresh = ca_file.with_name("new.pem")
        fresh.write_bytes(authority(other))
        fresh.rename(ca_file)
        wait_for_answer(edge, certificate=foreign)
        assert ask(edge, "sealcomb_acc_x", certificate=good).closed


def test_a_certificate_may_be_asked_for_and_not_demanded(plain_edge: Edge, tmp_path: Path) -> None:
    """Twin of the demand: the same Envoy without it."""

    def weaken(config: Json) -> None:
        chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
        context = chain["transport_socket"]["typed_config"]
        context["require_client_certificate"] = False
        ca_file = tmp_path / "ca.pem"
        ca_file.write_bytes(authority(TestCa.make()))
        context["common_tls_context"]["validation_context"] = {"trusted_ca": {"filename": str(ca_file)}}

    with weakened(plain_edge, weaken) as twin:
        foreign = issued(TestCa.make(), tmp_path / "clients", "foreign")
        assert ask(twin, "sealcomb_acc_x").grpc_status in ("8", "16")
        assert ask(twin, "sealcomb_acc_x", certificate=foreign).closed


def test_connections_come_at_a_pace_and_those_that_stand_are_untouched(plain_edge: Edge) -> None:
    """A20."""

    def slow(config: Json) -> None:
        (pace,) = config["static_resources"]["listeners"][0]["listener_filters"]
        pace["typed_config"]["token_bucket"] = {
            "max_tokens": 20,
            "tokens_per_fill": 1,
            "fill_interval": "60s",
        }

    with weakened(plain_edge, slow) as paced, connection(paced) as standing:
        refused = sum(knock(paced) for _ in range(40))
        assert refused >= 20
        stream = standing.send(grpc_headers(QUERY, token="sealcomb_acc_x"), EMPTY_MESSAGE)
        assert standing.reply(stream).grpc_status in ("8", "16")


def test_without_the_pace_every_connection_is_taken(plain_edge: Edge) -> None:
    """Twin of the test above."""

    def weaken(config: Json) -> None:
        config["static_resources"]["listeners"][0]["listener_filters"] = []

    with weakened(plain_edge, weaken) as twin:
        assert sum(knock(twin) for _ in range(40)) == 0


def knock(edge: Edge) -> bool:
    """Whether a connection is refused before its handshake."""
    try:
        with connection(edge):
            return False
    except OSError:
        return True


def wait_for_answer(edge: Edge, **how: object) -> None:
    deadline = time.monotonic() + 20
    while not ask(edge, "sealcomb_acc_x", **how).grpc_status:
        assert time.monotonic() < deadline, edge.log()
        time.sleep(0.1)
