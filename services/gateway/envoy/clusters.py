"""The clusters behind the edge: the policy process's socket, and each service over mutual TLS."""

from __future__ import annotations

from services.common.methods import GATEWAY
from services.common.tls import SPIFFE_PREFIX, host_of
from services.gateway.envoy.balancing import OUTLIERS, balancer, discovery
from services.gateway.envoy.plan import (
    CONNECTION_WINDOW_BYTES,
    POLICY_CLUSTER,
    SDS_CA,
    SDS_INNER,
    STREAM_WINDOW_BYTES,
    TLS13,
    TYPE,
    EdgePlan,
    Json,
    each_address,
    sds_config,
    socket_address,
)

# Streams live long and do little at a time, so they neither take nor need the places of other calls.
_STREAMS_MAX = 4096


def policy_cluster(plan: EdgePlan) -> Json:
    """The authorization server."""
    return {
        "name": POLICY_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "load_assignment": _endpoints(POLICY_CLUSTER, {"pipe": {"path": str(plan.policy_socket)}}),
        "circuit_breakers": {
            "thresholds": [{"max_connections": 2048, "max_pending_requests": 4096, "max_requests": 4096}]
        },
    }


def service_cluster(plan: EdgePlan, service: str, address: str) -> Json:
    """One service, known by its certificate alone; `address` may name several replicas."""
    addresses = each_address(address)
    cluster: Json = {
        "name": service,
        **discovery(addresses),
        "connect_timeout": "1s",
        **balancer(service),
        "load_assignment": _endpoints(service, *map(socket_address, addresses)),
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {
            "thresholds": [
                _bounds("DEFAULT", plan.calls_in_flight_max * len(addresses)),
                _bounds("HIGH", _STREAMS_MAX),
            ]
        },
        "transport_socket": _upstream_tls(plan, service),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": "600s", "max_connection_duration": "1800s"},
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "max_concurrent_streams": 100,
                        "initial_stream_window_size": STREAM_WINDOW_BYTES,
                        "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
                        "connection_keepalive": {"interval": "30s", "timeout": "5s"},
                    }
                },
            }
        },
    }
    if service != GATEWAY:
        # The policy process shares its life with this Envoy: without it nothing is answered anyway.
        cluster |= {"health_checks": [_health_check(service)], "outlier_detection": OUTLIERS}
    return cluster


def _bounds(priority: str, requests: int) -> Json:
    return {
        "priority": priority,
        "max_connections": 1024,
        "max_pending_requests": requests,
        "max_requests": requests,
        # Enough for the calls of a replica that dies, too few to double the load for long.
        "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 32},
    }


def _health_check(service: str) -> Json:
    return {
        # A replica that works at its limit answers late, which is no reason to lose it.
        "timeout": "2s",
        "interval": "1s",
        # The default is a minute: a service that started late would be missed for so long.
        "no_traffic_interval": "1s",
        "no_traffic_healthy_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "grpc_health_check": {"authority": host_of(service)},
    }


def _upstream_tls(plan: EdgePlan, service: str) -> Json:
    return {
        "name": "tls",
        "typed_config": {
            "@type": TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": host_of(service),
            "common_tls_context": {
                "tls_params": TLS13,
                "alpn_protocols": ["h2"],
                "tls_certificate_sds_secret_configs": [sds_config(plan, SDS_INNER)],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [
                            {"san_type": "URI", "matcher": {"exact": SPIFFE_PREFIX + service}}
                        ]
                    },
                    "validation_context_sds_secret_config": sds_config(plan, SDS_CA),
                },
            },
        },
    }


def _endpoints(name: str, *addresses: Json) -> Json:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
