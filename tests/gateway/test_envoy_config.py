"""The configuration as text: what must be in it, whatever Envoy would also accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.methods import EDGE_METHODS, HEALTH_METHODS, INGEST, SERVICES, VECTORSTORE, Scope
from services.gateway.envoy.config import bootstrap, secrets
from services.gateway.envoy.plan import EdgePlan
from services.gateway.reflection import PUBLIC_FILES, client_stream_methods, public_pool, public_services
from tests.gateway.weakened import Json, manager, routes, tls


@pytest.fixture
def config(tmp_path: Path) -> Json:
    addresses = {service: f"127.0.0.1:{1000 + number}" for number, service in enumerate(SERVICES)}
    streams = client_stream_methods()
    return bootstrap(
        EdgePlan("[::1]:8443", tmp_path, tmp_path, tmp_path, addresses, 10, 1 << 30, 4 << 20, streams)
    )


def test_there_is_one_exact_route_for_each_method_and_nothing_else(config: Json) -> None:
    paths = [route["match"].get("path") for route in routes(config)]
    assert paths == [None, None, *EDGE_METHODS, *HEALTH_METHODS, None]
    for route in routes(config)[2:-1]:
        assert {"name": ":path", "string_match": {"exact": route["match"]["path"]}} in route["match"][
            "headers"
        ]
    assert all("direct_response" in route for route in routes(config)[:2])
    assert "direct_response" in routes(config)[-1]


def test_the_table_of_methods_is_what_the_descriptors_say() -> None:
    """Routes come from the table; this holds the table and the compiled descriptors together."""
    described = {
        f"/{service.full_name}/{method.name}"
        for file in PUBLIC_FILES
        for service in file.services_by_name.values()
        for method in service.methods
        if service.full_name.startswith("sealcomb.v1.")
    }
    assert described == {path for path in EDGE_METHODS if path.startswith("/sealcomb.v1.")}
    assert "grpc.health.v1.Health" in public_services()


def test_only_streaming_uploads_are_not_bounded_as_one_message(config: Json) -> None:
    free = {
        route["match"]["path"]
        for route in routes(config)
        if route.get("typed_per_filter_config", {}).get("buffer", {}).get("disabled")
        and "path" in route["match"]
    }
    assert free == client_stream_methods()
    assert free == {
        "/sealcomb.v1.CollectionService/ImportCollection",
        "/sealcomb.v1.DocumentService/UploadDocument",
        "/sealcomb.v1.VectorService/UpsertStream",
    }


def test_only_methods_that_change_nothing_are_sent_again_once_begun(config: Json) -> None:
    routed = {route["match"].get("path", "") for route in routes(config)}
    assert routed >= set(EDGE_METHODS)
    for route in routes(config):
        if (method := EDGE_METHODS.get(route["match"].get("path", ""))) is not None:
            conditions = route["route"]["retry_policy"]["retry_on"].split(",")
            assert ("reset" in conditions) is method.reads
            assert "5xx" not in conditions
    assert not [path for path, method in EDGE_METHODS.items() if method.reads and method.scope is Scope.WRITE]
    assert {method.path.rsplit("/", 1)[1] for method in EDGE_METHODS.values() if method.reads} >= {
        "Query",
        "Search",
        "GetPoints",
        "ListTokens",
        "WhoAmI",
    }


def test_replicas_are_listed_or_found_by_name(tmp_path: Path) -> None:
    addresses = {VECTORSTORE: "10.0.0.1:1,10.0.0.2:1", INGEST: "ingest.internal:2"}
    plan = EdgePlan("[::1]:8443", tmp_path, tmp_path, tmp_path, addresses, 10, 1 << 30, 4 << 20, frozenset())
    clusters = {cluster["name"]: cluster for cluster in bootstrap(plan)["static_resources"]["clusters"]}
    listed, named = clusters[VECTORSTORE], clusters[INGEST]
    assert (listed["type"], listed["lb_policy"]) == ("STATIC", "MAGLEV")
    assert len(listed["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2
    assert (named["type"], named["lb_policy"]) == ("STRICT_DNS", "LEAST_REQUEST")
    for cluster in (listed, named):
        (check,) = cluster["health_checks"]
        assert check["no_traffic_interval"] == check["interval"]
        assert cluster["outlier_detection"]["split_external_local_origin_errors"] is True


def test_every_service_is_known_by_its_certificate_alone(config: Json) -> None:
    clusters = {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}
    for service in SERVICES:
        context = clusters[service]["transport_socket"]["typed_config"]["common_tls_context"]
        names = context["combined_validation_context"]["default_validation_context"][
            "match_typed_subject_alt_names"
        ]
        assert names == [{"san_type": "URI", "matcher": {"exact": f"spiffe://sealcomb.internal/{service}"}}]
        assert context["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"


def test_it_fails_closed_and_is_administered_by_a_private_socket_alone(config: Json, tmp_path: Path) -> None:
    (authz,) = [one for one in manager(config)["http_filters"] if one["name"] == "ext_authz"]
    assert authz["typed_config"]["failure_mode_allow"] is False
    assert authz["typed_config"]["status_on_error"] == {"code": "ServiceUnavailable"}
    assert config["admin"] == {"address": {"pipe": {"path": str(tmp_path / "admin.sock"), "mode": 0o600}}}
    assert tls(config)["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"


def test_no_private_key_is_copied_into_it(config: Json, tmp_path: Path) -> None:
    plan = EdgePlan("127.0.0.1:1", tmp_path, tmp_path, tmp_path, {}, 1, 1, 1, frozenset())
    for text in (str(config), str(secrets(plan))):
        assert "inline" not in text.replace("inline_string", "")
        assert "PRIVATE KEY" not in text


def test_the_reflected_pool_holds_public_files_only() -> None:
    """A15."""
    pool = public_pool()
    for name in public_services():
        assert pool.FindServiceByName(name).full_name == name
    for inner in ("sealcomb.internal.v1.KeyReleaseService", "sealcomb.internal.v1.PassageService"):
        with pytest.raises(KeyError):
            pool.FindServiceByName(inner)


def test_the_second_door_has_every_bound_of_the_first(tmp_path: Path) -> None:
    addresses = dict.fromkeys(SERVICES, "127.0.0.1:1")
    plan = EdgePlan(
        "[::1]:8443", tmp_path, tmp_path, tmp_path, addresses, 10, 1 << 30, 4 << 20, frozenset(),
        http_listen="[::1]:8444", client_ca_file=tmp_path / "ca.pem", proxy_protocol=True, trusted_hops=2,
    )  # fmt: skip
    first, second = bootstrap(plan)["static_resources"]["listeners"]
    for part in ("listener_filters", "per_connection_buffer_limit_bytes"):
        assert first[part] == second[part]
    one, other = first["filter_chains"][0], second["filter_chains"][0]
    assert one["transport_socket_connect_timeout"] == other["transport_socket_connect_timeout"]
    demand = "require_client_certificate"
    assert (
        one["transport_socket"]["typed_config"][demand] is other["transport_socket"]["typed_config"][demand]
    )
    ours, theirs = one["filters"][0]["typed_config"], other["filters"][0]["typed_config"]
    for part in (
        "http2_protocol_options", "common_http_protocol_options", "max_request_headers_kb",
        "request_headers_timeout", "stream_idle_timeout", "xff_num_trusted_hops",
    ):  # fmt: skip
        assert ours[part] == theirs[part]
    names = [one["name"] for one in theirs["http_filters"]]
    assert names.index("client-address") < names.index("ext_authz")
    refused = [route["direct_response"]["status"] for route in routes(bootstrap(plan))[:2]]
    host = theirs["route_config"]["virtual_hosts"][0]
    assert refused == [route["direct_response"]["status"] for route in host["routes"][:2]] == [431, 415]
