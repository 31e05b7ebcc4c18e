"""Ingest's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.settings import ServiceSettings

_MIB = 1024 * 1024


class IngestSettings(ServiceSettings):
    """What ingest is told by its environment."""

    keyvault_address: str = Field(pattern=r"^[^\s]+:\d{1,5}$")
    vectorstore_address: str = Field(pattern=r"^[^\s]+:\d{1,5}$")
    # host:port of the gateway's inner server, which is asked whether tokens of open streams are still good;
    # none: no stream lasts longer than a minute.
    gateway_address: str | None = Field(default=None, pattern=r"^[^\s]+:\d{1,5}$")
    # Where sealed originals go, as in `file:<folder>`.
    objects_url: str = Field(min_length=1)
    # `onnx:<folder>` or `https://host/v1#model`.
    embedder: str = Field(min_length=1)
    embedder_api_key_file: Path | None = None
    embedder_ca_file: Path | None = None
    # Threads that embed; 0: one for each core.
    embedder_workers: int = Field(default=0, ge=0, le=256)

    # `onnx:<folder>` of a cross-encoder; empty: none.
    reranker: str = Field(default="", pattern=r"^(onnx:.+)?$")

    document_bytes_max: int = Field(default=64 * _MIB, ge=1024, le=64 * _MIB)
    # All uploads in progress keep their documents in memory until they are committed.
    upload_bytes_in_flight_max: int = Field(default=512 * _MIB, ge=_MIB)
    upload_bytes_in_flight_account_max: int = Field(default=256 * _MIB, ge=_MIB)
    upload_idle_s_max: float = Field(default=30.0, gt=0, le=600)
    upload_s_max: float = Field(default=600.0, gt=0, le=3000)

    # JSON with the operator's OAuth clients; see services.ingest.connections.catalogue.
    oauth_clients_file: Path | None = None
    # Addresses of sources' APIs where they are not the vendor's own, as JSON: {"github": "https://..."}.
    source_api_urls: dict[str, str] = Field(default_factory=dict)
    # Registered redirect addresses, separated by commas; loopback ones need not be.
    oauth_redirect_uris: str = ""
    # Private hosts that sources may be on, as `host:port` separated by commas, and who vouches for them.
    egress_allow: str = ""
    egress_ca_file: Path | None = None
    # Ingestions that run at once, and how long a worker that died keeps one.
    ingestion_runs: int = Field(default=2, ge=0, le=64)
    ingestion_lease_s: float = Field(default=30.0, gt=0, le=600)
    # How often a source that tells its changes is listed from the beginning all the same.
    ingestion_full_listing_s: int = Field(default=7 * 86_400, ge=60)
    # A source that names more ends its ingestion: its settings are to be narrowed.
    ingestion_items_max: int = Field(default=1_000_000, ge=1)

    extract_workers: int = Field(default=2, ge=1, le=64)
    extract_memory_bytes_max: int = Field(default=2048 * _MIB, ge=512 * _MIB)
    extract_cpu_s_max: int = Field(default=120, ge=1)
    extract_wall_s_max: float = Field(default=150.0, gt=0)
