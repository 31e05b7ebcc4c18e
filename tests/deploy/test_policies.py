"""The private network as the manifests draw it: every pair of parties, and the outside."""

from __future__ import annotations

import copy

import pytest

from tests.deploy.policies import Outside, Party, Pod, allowed
from tests.deploy.rendered import OVERLAYS, SERVICES, Json, named, of_kind, rendered

_EDGES = {
    ("gateway", "keyvault"),
    ("gateway", "vectorstore"),
    ("gateway", "ingest"),
    # Usage, and whether the tokens of open streams are still good.
    ("vectorstore", "gateway"),
    ("ingest", "gateway"),
    ("vectorstore", "keyvault"),
    ("ingest", "keyvault"),
    ("ingest", "vectorstore"),
}
# With several vectorstores a call is passed on to the one that holds the collection.
_EDGES_OF = {"local": _EDGES, "aws": _EDGES | {("vectorstore", "vectorstore")}}
_INTERNET = Outside("198.51.100.7")
_PORTS = (53, 80, 443, 5432, 6379, 7443, 8443, 9090, 10250)
_PRIVATE = (
    "10.96.0.1",
    "172.20.0.10",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "127.0.0.1",
    "fd00::1",
)


def _pod(service: str, overlay: str = "local") -> Pod:
    return Pod(named(rendered(overlay), "StatefulSet", service)["spec"]["template"]["metadata"]["labels"])


def _policies(overlay: str) -> list[Json]:
    return of_kind(rendered(overlay), "NetworkPolicy")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_of_all_pairs_of_services_and_ports_exactly_the_drawn_edges_are_open(overlay: str) -> None:
    """G2: 16 pairs, each at nine ports."""
    policies = _policies(overlay)
    open_edges = {
        (source, target, port)
        for source in SERVICES
        for target in SERVICES
        for port in _PORTS
        if allowed(policies, _pod(source, overlay), _pod(target, overlay), port)
    }
    assert {(source, target) for source, target, port in open_edges if port == 7443} == _EDGES_OF[overlay]
    # The edge's own port is the world's, but no service of ours may leave for it.
    assert {edge for edge in open_edges if edge[2] != 7443} == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_of_the_25_pairs_of_four_services_and_the_outside_only_the_drawn_ones_connect(overlay: str) -> None:
    """G2: a pod to itself and the outside to itself are among them, and nothing for us to open."""
    policies = _policies(overlay)
    parties: dict[str, Party] = {service: _pod(service, overlay) for service in SERVICES}
    parties["outside"] = _INTERNET
    connect = {
        (source, target): {
            port for port in _PORTS if allowed(policies, parties[source], parties[target], port)
        }
        for source in parties
        for target in parties
        if (source, target) != ("outside", "outside")
    }
    assert len(connect) == 24
    drawn = {edge: {7443} for edge in _EDGES_OF[overlay]} | {
        ("outside", "gateway"): {8443},
        ("ingest", "outside"): {443},
    }
    assert {pair: ports for pair, ports in connect.items() if ports} == drawn


def test_databases_bucket_and_limits_are_reached_by_those_alone_that_use_them() -> None:
    policies = _policies("aws")
    places = {
        "databases": ("10.0.254.5", 5432),
        "limits": ("10.0.252.5", 6379),
        "objects": ("10.0.253.5", 443),
    }
    migration = Pod(
        {"app.kubernetes.io/name": "migrate-keyvault", "app.kubernetes.io/component": "migration"}
    )
    pods = {service: _pod(service, "aws") for service in SERVICES} | {"migration": migration}
    reached = {
        place: {name for name, pod in pods.items() if allowed(policies, pod, Outside(address), port)}
        for place, (address, port) in places.items()
    }
    assert reached == {
        "databases": {*SERVICES, "migration"},
        "limits": {"gateway"},
        "objects": {"vectorstore", "ingest"},
    }
    for target in SERVICES:
        assert not any(allowed(policies, migration, pods[target], port) for port in _PORTS)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("source", [_INTERNET, Pod({"app": "any"}, "default"), Pod({"app": "any"})])
def test_from_outside_only_the_edge_is_reached(overlay: str, source: Party) -> None:
    """G2, C8: from the internet, from another namespace, and from a stray pod of our own."""
    policies = _policies(overlay)
    reached = {
        (service, port)
        for service in SERVICES
        for port in _PORTS
        if allowed(policies, source, _pod(service, overlay), port)
    }
    # A stray pod among ours is not even let out.
    stray = isinstance(source, Pod) and source.namespace == "sealcomb"
    assert reached == (set() if stray else {("gateway", 8443)})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_ingest_leaves_for_the_internet_and_by_https_alone(overlay: str) -> None:
    policies = _policies(overlay)
    leaving = {
        (service, port)
        for service in SERVICES
        for port in _PORTS
        if allowed(policies, _pod(service, overlay), _INTERNET, port)
    }
    assert leaving == {("ingest", 443)}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("address", _PRIVATE)
def test_no_service_reaches_private_addresses_or_the_nodes_metadata(overlay: str, address: str) -> None:
    """G3: keys of the node's role are at 169.254.169.254."""
    policies = _policies(overlay)
    for service in SERVICES:
        for port in _PORTS:
            assert not allowed(policies, _pod(service, overlay), Outside(address), port), service


def test_keyvault_reaches_the_kms_and_no_other_service_does() -> None:
    policies = _policies("aws")
    endpoint = Outside("10.0.255.5")
    assert [s for s in SERVICES if allowed(policies, _pod(s, "aws"), endpoint, 443)] == ["keyvault"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_are_looked_up_at_the_clusters_dns_alone(overlay: str) -> None:
    policies = _policies(overlay)
    dns = Pod({"k8s-app": "kube-dns"}, "kube-system")
    other = Pod({"k8s-app": "other"}, "kube-system")
    for service in SERVICES:
        assert allowed(policies, _pod(service, overlay), dns, 53, "UDP")
        assert not allowed(policies, _pod(service, overlay), other, 53, "UDP")


def test_metrics_are_for_prometheus_alone() -> None:
    """A16: and without the component, for nobody."""
    prometheus = Pod({"app.kubernetes.io/name": "prometheus"}, "monitoring")
    other = Pod({"app.kubernetes.io/name": "other"}, "monitoring")
    for service in SERVICES:
        assert allowed(_policies("aws"), prometheus, _pod(service, "aws"), 9090)
        assert not allowed(_policies("aws"), other, _pod(service, "aws"), 9090)
        assert not allowed(_policies("local"), prometheus, _pod(service), 9090)


def test_without_the_default_every_pod_of_ours_is_open_where_no_edge_is_drawn() -> None:
    """The twin: the evaluation sees a missing policy."""
    policies = [p for p in _policies("local") if p["metadata"]["name"] != "default-deny"]
    assert allowed(policies, _pod("keyvault"), _INTERNET, 443) is False  # `names` still bounds what leaves
    policies = [p for p in policies if p["metadata"]["name"] not in ("names", "keyvault")]
    assert allowed(policies, _pod("keyvault"), _INTERNET, 443)
    assert allowed(policies, _INTERNET, _pod("keyvault"), 7443)


def test_a_rule_that_names_no_port_opens_all_of_them() -> None:
    """The twin of the ports: what a slip in one line would open."""
    policies = copy.deepcopy(_policies("local"))
    (keyvault,) = (p for p in policies if p["metadata"]["name"] == "keyvault")
    del keyvault["spec"]["ingress"][0]["ports"]
    (gateway,) = (p for p in policies if p["metadata"]["name"] == "gateway")
    del gateway["spec"]["egress"][0]["ports"]
    assert allowed(policies, _pod("gateway"), _pod("keyvault"), 9090)
