"""Settings of the policy process and of the Envoy that it runs.

Everything is validated before anything listens. Secrets are paths of files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from services.common.settings import ServiceSettings

_ADDRESS = r"^[^\s,]+:\d{1,5}$"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# One service's replicas, separated by commas; or a name that stands for all of them.
_ADDRESSES = r"^[^\s,]+:\d{1,5}(,[^\s,]+:\d{1,5})*$"
_ORIGIN = r"https?://[a-z0-9.-]+(?::\d{1,5})?"
_ORIGINS = rf"^(?:{_ORIGIN}(?:,{_ORIGIN})*)?$"


class GatewaySettings(ServiceSettings):
    """Settings of the gateway, read from the environment with the prefix SEALCOMB_."""

    # The edge: where clients connect, and the folder with its cert.pem and key.pem.
    edge_listen: str = Field(pattern=_ADDRESS)
    edge_tls_dir: Path
    # The second door, JSON and gRPC-Web over HTTPS; empty: there is none.
    edge_http_listen: str = Field(default="", pattern=r"^$|" + _ADDRESS)
    # Origins whose pages may call it from a browser, such as https://app.example.com, with commas between.
    edge_cors_origins: str = Field(default="", pattern=_ORIGINS)
    # Whether the access log has the addresses of clients.
    access_log_addresses: bool = True
    # Private folder (0700) for sockets and Envoy's configuration.
    run_dir: Path
    keyvault_address: str = Field(pattern=_ADDRESSES)
    vectorstore_address: str = Field(pattern=_ADDRESSES)
    ingest_address: str = Field(pattern=_ADDRESSES)
    # Ed25519 private key (PEM) that signs call contexts.
    context_key_file: Path
    # 32 random bytes that key the token hashes.
    token_pepper_file: Path
    # Where the first operator token is written, once.
    operator_token_file: Path

    # Limits of an account that has none of its own.
    calls_per_second: float = Field(default=200.0, gt=0, le=1_000_000)
    burst: int = Field(default=400, ge=1, le=1_000_000)
    # Calls that a service may have under way for such an account, in all of its replicas together.
    calls_in_flight: int = Field(default=256, ge=1, le=1_000_000)
    # The part of its account's limits that one token may use.
    token_share: float = Field(default=1.0, gt=0, le=1)
    # Calls per client address before anything else is looked at, and how many may come at once; ten times
    # an account's if it is not said.
    address_calls_per_second: float | None = Field(default=None, gt=0, le=10_000_000)
    address_burst: int | None = Field(default=None, ge=1, le=10_000_000)
    # Lets a network carry the limits in clear. Whoever is on it can then lift them.
    shared_limits_insecure: bool = False
    # Where several policy processes share the limits: valkeys://user@host:6379/0, or valkey:// on loopback.
    # None: this process is the only one, and keeps them in memory.
    shared_limits_url: str | None = None
    shared_limits_password_file: Path | None = None
    # Whom to trust there, and with which certificate to come, if it asks for one.
    shared_limits_ca_file: Path | None = None
    shared_limits_cert_file: Path | None = None
    shared_limits_key_file: Path | None = None
    # By how many the limits are divided while that store is lost, if fewer were last seen.
    policies_min: int = Field(default=1, ge=1, le=1000)
    # Failed authentications per client address, and how many may come at once.
    failures_per_second: float = Field(default=5.0, gt=0, le=10_000)
    failure_burst: int = Field(default=50, ge=1, le=10_000)

    # At the end, after stop_notice_s: how long calls in flight may go on while no new connection is taken.
    drain_s: float = Field(default=25.0, ge=0, le=600)

    # Calls that one replica of a service may have under way, streams aside; more are refused at once.
    edge_calls_in_flight_max: int = Field(default=512, ge=1, le=100_000)
    # New connections a second in all; twice as many may come at once.
    edge_connections_per_second: int = Field(default=500, ge=1, le=100_000)
    # CA certificates (PEM) of clients; with them, clients must show a certificate of theirs, or may.
    edge_client_ca_file: Path | None = None
    edge_client_certificate_required: bool = True
    # What stands in front of the edge and says the clients' addresses: a balancer by PROXY protocol, or so
    # many proxies by x-forwarded-for. Neither is believed unless it is set.
    edge_proxy_protocol: bool = False
    edge_trusted_hops: int = Field(default=0, ge=0, le=10)
    edge_connections_max: int = Field(default=10_000, ge=1, le=1_000_000)
    edge_memory_bytes_max: int = Field(default=1 << 30, ge=1 << 27)
    # Largest request of a method that does not stream.
    edge_message_bytes_max: int = Field(default=4 << 20, ge=1 << 16, le=64 << 20)
    # Worker threads of Envoy; 0: one per core.
    envoy_concurrency: int = Field(default=0, ge=0, le=256)

    @field_validator("shared_limits_url")
    @classmethod
    def _check_shared_limits(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return None
        address = urlsplit(url)
        if address.scheme not in ("valkey", "valkeys") or not address.hostname or address.password:
            raise ValueError("must be valkeys://[user@]host[:port][/database]")
        if not re.fullmatch(r"(?:/[0-9]{0,4})?", address.path) or address.query or address.fragment:
            raise ValueError("must end with the number of a database")
        trusted = address.scheme == "valkeys" or info.data.get("shared_limits_insecure")
        if not trusted and address.hostname not in _LOOPBACK:
            raise ValueError("must be valkeys:// where it leaves this machine")
        if address.port == 0:
            raise ValueError("must name a port")
        return url

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """The origins, one by one."""
        return tuple(origin for origin in self.edge_cors_origins.split(",") if origin)

    @property
    def envoy_workers(self) -> int:
        """Worker threads of Envoy."""
        return self.envoy_concurrency or os.cpu_count() or 1
