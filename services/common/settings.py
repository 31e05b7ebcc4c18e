"""What the settings of every service have in common.

Each service has one frozen settings class that derives from these; it is read from the
environment (prefix SEALCOMB_) and validated before anything listens. Nothing else reads the
environment. Secrets come as paths of files, never as values.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.tls import TlsFiles

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class DatabaseSettings(BaseSettings):
    """Where a service's database is."""

    model_config = SettingsConfigDict(env_prefix="SEALCOMB_", frozen=True, extra="ignore")

    # Lets a network carry what the database is asked and told in clear, its password too.
    database_insecure: bool = False
    # URL of the service's own database: sqlite:///<file>, or postgresql://user@host/name?sslmode=verify-full
    # with libpq's settings, such as sslrootcert and passfile.
    database_url: str

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, url: str, info: ValidationInfo) -> str:
        scheme, _, _ = url.partition(":")
        if scheme.partition("+")[0] not in ("postgresql", "postgres"):
            return url
        address = urlsplit(url)
        options = parse_qs(address.query)
        if address.password or "password" in options:
            raise ValueError("must name no password; put it into a file and name that with passfile=")
        elsewhere = (options.get(name, []) for name in ("host", "hostaddr", "service"))
        hosts = [address.hostname or "", *chain.from_iterable(elsewhere)]
        # A name with a slash is a folder of sockets.
        here = all(not host or host in _LOOPBACK or host.startswith("/") for host in hosts)
        if here or options.get("sslmode") == ["verify-full"] or info.data.get("database_insecure"):
            return url
        raise ValueError("must have sslmode=verify-full where it leaves this machine")


class ServiceSettings(DatabaseSettings):
    """Settings of any service behind the edge."""

    # host:port of the service's own mutual TLS listener; port 0 takes a free one.
    listen: str = Field(pattern=r"^[^\s]+:\d{1,5}$")
    # Folder with ca.pem, cert.pem, key.pem of this service.
    tls_dir: Path
    # Folder with gateway.pub.pem and keyvault.pub.pem.
    context_trust_dir: Path
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # Where metrics and probes are answered, in clear and to anyone (services.common.ops); port 0: nowhere.
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    # Where traces go, as https://collector:4318 (OTLP over HTTP); in clear on this machine only.
    otlp_endpoint: str = Field(
        default="", pattern=r"^$|^https://[^\s@]+$|^http://(127\.0\.0\.1|\[::1\]|localhost):\d+$"
    )
    otlp_ca_file: Path | None = None
    # The part of the traces that is kept.
    trace_share: float = Field(default=1.0, ge=0, le=1)
    # How long a service that is told to stop says so before it does; with several replicas, 3 s, so
    # that no call reaches it any more.
    stop_notice_s: float = Field(default=0.0, ge=0, le=60)

    # How long a service uses a data key that keyvault gave it: the hard bound of the off switch, and how long
    # it goes on while the KMS does not answer.
    data_key_ttl_s: float = Field(default=60.0, gt=0, le=300)

    @property
    def tls(self) -> TlsFiles:
        """The service's TLS files."""
        return TlsFiles(self.tls_dir)
