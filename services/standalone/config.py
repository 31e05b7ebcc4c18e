"""The settings of a standalone installation, and from them the environment of each service.

What a service gets is listed here name by name: nothing of the caller's own environment reaches
it but what a program needs to run at all, and no secret ever does, only the paths of files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.standalone.pki import Installation

# In the data folder while it runs: the port of every inner service, for `sealcomb-admin`.
PORTS_FILE = "ports.json"
# There while a backup is put back; nothing starts on half of an installation.
RESTORING = ".restoring"
# The order of starting; they stop in the opposite one, so the edge refuses new calls first.
SERVICE_ORDER = ("keyvault", "vectorstore", "ingest", "gateway")
_MODEL_DIR = Path(sys.prefix) / "share" / "sealcomb" / "models" / "all-minilm-l6-v2"
_KEYVAULT_SETTINGS = (
    "aged_key_s",
    "kms",
    "kms_timeout_s",
    "kms_calls_per_second",
    "aws_region",
    "aws_account_id",
    "aws_endpoint_url",
    "aws_ca_file",
    "aws_root_key_arn",
    "transit_url",
    "transit_mount",
    "transit_token_file",
    "transit_ca_file",
    "transit_namespace",
    "pkcs11_module",
    "pkcs11_token",
    "pkcs11_pin_file",
)
_EDGE_SETTINGS = (
    "edge_calls_in_flight_max",
    "edge_connections_max",
    "edge_connections_per_second",
    "edge_trusted_hops",
)
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE")


class StandaloneSettings(BaseSettings):
    """What can be said about a whole installation (prefix SEALCOMB_)."""

    model_config = SettingsConfigDict(
        env_prefix="SEALCOMB_", frozen=True, extra="ignore", populate_by_name=True
    )

    # All state but the keys.
    data_dir: Path = Path("data")
    # The keys; not set: `<data_dir>.keys`, beside the data and never inside it.
    keys_dir: Path | None = None
    edge_host: str = "127.0.0.1"
    edge_port: int = Field(default=8443, ge=1, le=65535)
    # JSON over HTTPS and gRPC-Web; 0: no such door.
    edge_http_port: int = Field(default=8444, ge=0, le=65535)
    edge_cors_origins: str = ""
    # The gateway's own bounds of the edge, and what stands in front of it, which it checks itself.
    edge_calls_in_flight_max: str = ""
    edge_connections_max: str = ""
    edge_connections_per_second: str = ""
    edge_trusted_hops: str = ""
    # `make run DEMO=0` says it without the prefix.
    demo: bool = Field(default=True, validation_alias=AliasChoices("SEALCOMB_DEMO", "DEMO"))
    # Folder of the demo's documents.
    examples_dir: Path = Path(__file__).resolve().parents[2] / "examples" / "documents"
    # An embedder as services.ingest takes it; not set: the prepared MiniLM model.
    embedder: str = ""
    # model.json of that embedder; not set: the one in its folder.
    embedder_info: Path | None = None
    # A cross-encoder for searches that ask for it, `onnx:<folder>`; empty: none.
    reranker: str = ""
    # The operator's OAuth clients, registered redirect addresses, and private hosts that sources may be on.
    oauth_clients_file: Path | None = None
    oauth_redirect_uris: str = ""
    egress_allow: str = ""
    egress_ca_file: Path | None = None
    # Ingest's own settings of sources and ingestions, which it checks itself.
    source_api_urls: str = ""
    ingestion_runs: str = ""
    ingestion_lease_s: str = ""
    ingestion_full_listing_s: str = ""
    ingestion_items_max: str = ""
    # Keyvault's own settings of KMSs beside the root key file (docs/kms.md), which it checks itself.
    kms: str = ""
    kms_timeout_s: str = ""
    kms_calls_per_second: str = ""
    aws_region: str = ""
    aws_account_id: str = ""
    aws_endpoint_url: str = ""
    aws_ca_file: Path | None = None
    aws_root_key_arn: str = ""
    transit_url: str = ""
    transit_mount: str = ""
    transit_token_file: Path | None = None
    transit_ca_file: Path | None = None
    transit_namespace: str = ""
    pkcs11_module: Path | None = None
    pkcs11_token: str = ""
    pkcs11_pin_file: Path | None = None
    calls_per_second: float | None = None
    burst: int | None = None
    data_key_ttl_s: float | None = None
    # Where traces go (docs/operations.md).
    otlp_endpoint: str = ""
    otlp_ca_file: Path | None = None
    aged_key_s: float | None = None
    log_level: str = "info"

    @property
    def keys_folder(self) -> Path:
        """Where the keys are."""
        data = self.data_dir.absolute()
        return self.keys_dir.absolute() if self.keys_dir else data.with_name(data.name + ".keys")

    @property
    def model_dir(self) -> Path:
        """The folder of the default embedding model."""
        return _MODEL_DIR

    @property
    def needs_default_model(self) -> bool:
        """Whether the default embedding model is used and not there yet."""
        return not self.embedder and not (_MODEL_DIR / "model.json").exists()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one installation is: folders, and the port of every inner service."""

    settings: StandaloneSettings
    installation: Installation
    ports: Mapping[str, int]

    @property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.settings.data_dir.absolute()

    @property
    def operator_token_file(self) -> Path:
        """Where the gateway leaves the first operator token."""
        return self.installation.keys_dir / "operator.token"

    def address(self, service: str) -> str:
        """host:port of an inner service."""
        return f"127.0.0.1:{self.ports[service]}"

    def environment(self, service: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a service."""
        common = {
            "LISTEN": self.address(service),
            "TLS_DIR": str(self.installation.tls_dir(service)),
            "CONTEXT_TRUST_DIR": str(self.installation.context_trust_dir),
            "DATABASE_URL": f"sqlite:///{self.data / service / (service + '.db')}",
            "LOG_LEVEL": self.settings.log_level,
        }
        if self.settings.otlp_endpoint:
            common["OTLP_ENDPOINT"] = self.settings.otlp_endpoint
        if self.settings.otlp_ca_file is not None:
            common["OTLP_CA_FILE"] = str(self.settings.otlp_ca_file.absolute())
        if self.settings.data_key_ttl_s is not None:
            common["DATA_KEY_TTL_S"] = str(self.settings.data_key_ttl_s)
        own = getattr(self, f"_{service}")()
        environment = {name: inherited[name] for name in _INHERITED if name in inherited}
        # More threads than cores make the slowest calls slower still (services run one query a thread).
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if service in ("ingest", "keyvault"):
            # What is freed is overwritten at once (docs/adr/0014): temporary tokens and keys have been there.
            environment |= {"GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"}
        if service == "keyvault":
            # Python's own small blocks, such as a key's, as well.
            environment |= {"PYTHONMALLOC": "malloc"}
        environment |= {f"SEALCOMB_{name}": value for name, value in (common | own).items()}
        return environment

    def _keyvault(self) -> dict[str, str]:
        said = {name: getattr(self.settings, name) for name in _KEYVAULT_SETTINGS}
        said |= {name: path.absolute() for name, path in said.items() if isinstance(path, Path)}
        return {name.upper(): str(value) for name, value in said.items() if value} | {
            "CONTEXT_KEY_FILE": str(self.installation.context_key_file("keyvault")),
            "ROOT_KEY_FILE": str(self.installation.root_key_file),
        }

    def _vectorstore(self) -> dict[str, str]:
        info = self.settings.embedder_info or self.settings.model_dir / "model.json"
        return {
            "KEYVAULT_ADDRESS": self.address("keyvault"),
            "GATEWAY_ADDRESS": self.address("gateway"),
            "OBJECTS_URL": f"file:{self.data / 'vectorstore' / 'objects'}",
            "EMBEDDER_INFO": str(info),
        }

    def _ingest(self) -> dict[str, str]:
        settings = self.settings
        said = {
            "RERANKER": settings.reranker,
            "OAUTH_CLIENTS_FILE": settings.oauth_clients_file and str(settings.oauth_clients_file.absolute()),
            "OAUTH_REDIRECT_URIS": settings.oauth_redirect_uris,
            "EGRESS_ALLOW": settings.egress_allow,
            "EGRESS_CA_FILE": settings.egress_ca_file and str(settings.egress_ca_file.absolute()),
            "SOURCE_API_URLS": settings.source_api_urls,
            "INGESTION_RUNS": settings.ingestion_runs,
            "INGESTION_LEASE_S": settings.ingestion_lease_s,
            "INGESTION_FULL_LISTING_S": settings.ingestion_full_listing_s,
            "INGESTION_ITEMS_MAX": settings.ingestion_items_max,
        }
        return {name: value for name, value in said.items() if value} | {
            "KEYVAULT_ADDRESS": self.address("keyvault"),
            "VECTORSTORE_ADDRESS": self.address("vectorstore"),
            "GATEWAY_ADDRESS": self.address("gateway"),
            "OBJECTS_URL": f"file:{self.data / 'ingest' / 'objects'}",
            "EMBEDDER": self.settings.embedder or f"onnx:{self.settings.model_dir}",
        }

    def _gateway(self) -> dict[str, str]:
        own = {
            "KEYVAULT_ADDRESS": self.address("keyvault"),
            "VECTORSTORE_ADDRESS": self.address("vectorstore"),
            "INGEST_ADDRESS": self.address("ingest"),
            "CONTEXT_KEY_FILE": str(self.installation.context_key_file("gateway")),
            "TOKEN_PEPPER_FILE": str(self.installation.token_pepper_file),
            "OPERATOR_TOKEN_FILE": str(self.operator_token_file),
            "EDGE_LISTEN": f"{self.settings.edge_host}:{self.settings.edge_port}",
            "EDGE_CORS_ORIGINS": self.settings.edge_cors_origins,
            "EDGE_TLS_DIR": str(self.installation.edge_tls_dir),
            # Beside the keys, since Envoy's configuration may name or hold some.
            "RUN_DIR": str(self.installation.keys_dir / "run"),
        }
        own |= {
            name.upper(): value for name in _EDGE_SETTINGS if (value := str(getattr(self.settings, name)))
        }
        if self.settings.edge_http_port:
            own["EDGE_HTTP_LISTEN"] = f"{self.settings.edge_host}:{self.settings.edge_http_port}"
        if self.settings.calls_per_second is not None:
            own["CALLS_PER_SECOND"] = str(self.settings.calls_per_second)
        if self.settings.burst is not None:
            own["BURST"] = str(self.settings.burst)
        return own
