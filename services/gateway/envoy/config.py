"""Envoy's configuration, made from the settings and the one table of public methods.

What holds at the edge whatever the policy process does: TLS 1.3 and HTTP/2 only; exact routes of
listed methods, all else UNIMPLEMENTED before policy is asked; client headers by allow-list;
no policy, no entry; mutual TLS to the exact peer; everything bounded. The administration
interface is a Unix socket of this user's.
"""

from __future__ import annotations

from pathlib import Path

from services.gateway.envoy.clusters import policy_cluster, service_cluster
from services.gateway.envoy.http_listener import http_listener
from services.gateway.envoy.listener import edge_listener
from services.gateway.envoy.metrics import stats_config
from services.gateway.envoy.plan import SDS_CA, SDS_CLIENT_CA, SDS_EDGE, SDS_INNER, TYPE, EdgePlan, Json


def bootstrap(plan: EdgePlan) -> Json:
    """The whole configuration of one Envoy."""
    return {
        "node": {"id": "edge", "cluster": "sealcomb"},
        "static_resources": {
            "listeners": [
                edge_listener(plan),
                *([http_listener(plan, plan.http_listen)] if plan.http_listen else []),
            ],
            "clusters": [
                policy_cluster(plan),
                *(
                    service_cluster(plan, service, address)
                    for service, address in sorted(plan.addresses.items())
                ),
            ],
        },
        "overload_manager": _overload(plan),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        "stats_config": stats_config(),
        # For this user alone; the folder is private too. It has no port.
        "admin": {"address": {"pipe": {"path": str(plan.admin_socket), "mode": 0o600}}},
    }


def secrets(plan: EdgePlan) -> dict[str, Json]:
    """The files by which Envoy finds certificates, by name; it follows what is renamed into place."""
    edge, inner = plan.edge_tls_dir, plan.inner_tls_dir
    client_ca = {}
    if plan.client_ca_file is not None:
        client_ca = {f"sds-{SDS_CLIENT_CA}.json": _authorities(SDS_CLIENT_CA, plan.client_ca_file)}
    return {
        **client_ca,
        "sds-edge.json": _secret(SDS_EDGE, tls_certificate=_certificate(edge)),
        "sds-inner.json": _secret(SDS_INNER, tls_certificate=_certificate(inner)),
        "sds-inner-ca.json": _authorities(SDS_CA, inner / "ca.pem"),
    }


_RUNTIME: Json = {
    # Rapid reset: a connection whose first 500 streams were mostly reset within a second is closed.
    "overload": {"premature_reset_total_stream_count": 500, "premature_reset_min_stream_lifetime_seconds": 1},
    # One connection's burst of requests does not hold a worker.
    "http": {"max_requests_per_io_cycle": 1},
    # Room for the pattern of headers that do not go on.
    "re2": {"max_program_size": {"error_level": 4000, "warn_level": 4000}},
}


def _overload(plan: EdgePlan) -> Json:
    heap, connections = (
        "envoy.resource_monitors.fixed_heap",
        "envoy.resource_monitors.global_downstream_max_connections",
    )
    monitors = TYPE + "extensions.resource_monitors."

    def at(value: float) -> list[Json]:
        return [{"name": heap, "threshold": {"value": value}}]

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": monitors + "fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": plan.memory_bytes_max,
                },
            },
            {
                "name": connections,
                "typed_config": {
                    "@type": monitors + "downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": plan.connections_max,
                },
            },
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": at(0.85)},
            {"name": "envoy.overload_actions.disable_http_keepalive", "triggers": at(0.90)},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": at(0.95)},
            {"name": "envoy.overload_actions.stop_accepting_connections", "triggers": at(0.98)},
        ],
    }


def _secret(name: str, **content: Json) -> Json:
    resource = {"@type": TYPE + "extensions.transport_sockets.tls.v3.Secret", "name": name, **content}
    return {"resources": [resource]}


def _authorities(name: str, file: Path) -> Json:
    context = {"trusted_ca": {"filename": str(file)}, "watched_directory": {"path": str(file.parent)}}
    return _secret(name, validation_context=context)


def _certificate(folder: Path) -> Json:
    return {
        "certificate_chain": {"filename": str(folder / "cert.pem")},
        "private_key": {"filename": str(folder / "key.pem")},
        "watched_directory": {"path": str(folder)},
    }
