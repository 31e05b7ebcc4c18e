"""What Envoy's configuration is made of, and the small parts that the listener and the clusters share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

TYPE = "type.googleapis.com/envoy."
SDS_EDGE, SDS_INNER, SDS_CA, SDS_CLIENT_CA = "edge", "inner", "inner-ca", "client-ca"
STREAM_WINDOW_BYTES = 64 * 1024
CONNECTION_WINDOW_BYTES = 1024 * 1024
POLICY_CLUSTER = "ext_authz"
TLS13: Json = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """What the configuration is made of."""

    listen: str
    edge_tls_dir: Path
    inner_tls_dir: Path
    run_dir: Path
    # host:port of each service's inner listeners, replicas by commas; the policy process's own included.
    addresses: dict[str, str]
    connections_max: int
    memory_bytes_max: int
    message_bytes_max: int
    # Public methods whose request is a stream, which is never buffered whole.
    client_streams: frozenset[str]
    # Public methods whose answer is a stream.
    server_streams: frozenset[str] = frozenset()
    # Calls that do not stream which one replica of a service may have under way.
    calls_in_flight_max: int = 512
    # The second door's address; None: there is none.
    http_listen: str | None = None
    # Whose pages may call it from a browser: exact origins.
    cors_origins: tuple[str, ...] = ()
    # The public files, as a FileDescriptorSet, by which JSON is read and written.
    descriptors: bytes = b""
    # Whether the access log has the addresses of clients.
    log_addresses: bool = True
    # New connections a second in all, and twice as many at once.
    connections_per_second: int = 500
    # Whose certificates clients must show (or may, if not required); None: nobody's.
    client_ca_file: Path | None = None
    client_certificate_required: bool = True
    # Who in front says the client's address: a balancer by PROXY protocol, or so many proxies by header.
    proxy_protocol: bool = False
    trusted_hops: int = 0

    @property
    def policy_socket(self) -> Path:
        """Where the authorization server listens."""
        return self.run_dir / "policy.sock"

    @property
    def admin_socket(self) -> Path:
        """Where Envoy itself takes orders, from this user alone."""
        return self.run_dir / "admin.sock"


def sds_config(plan: EdgePlan, name: str) -> Json:
    """Where Envoy finds the secret of this name."""
    source = {
        "path": str(plan.run_dir / f"sds-{name}.json"),
        "watched_directory": {"path": str(plan.run_dir)},
    }
    return {"name": name, "sds_config": {"path_config_source": source, "resource_api_version": "V3"}}


def each_address(addresses: str) -> tuple[str, ...]:
    """The replicas that a setting names, separated by commas."""
    return tuple(one.strip() for one in addresses.split(",") if one.strip())


def socket_address(text: str) -> Json:
    """A host:port as Envoy wants it."""
    host, port = text.rsplit(":", 1)
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
