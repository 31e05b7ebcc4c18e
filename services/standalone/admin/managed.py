"""An installation as its operator sees it: the settings of every service, whether it runs or not.

They come from the data folder of a standalone installation, or from a folder with `<service>.env` for each
service, as the pods of Kubernetes have them. Nothing of the operator's own environment is mixed in.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from services.common.methods import GATEWAY, INGEST, KEYVAULT, SERVICES, VECTORSTORE
from services.common.settings import ServiceSettings
from services.gateway.config import GatewaySettings
from services.ingest.config import IngestSettings
from services.keyvault.config import KeyvaultSettings
from services.standalone.config import PORTS_FILE, SERVICE_ORDER, Layout, StandaloneSettings
from services.standalone.lock import lock_folder
from services.standalone.pki import Installation
from services.vectorstore.config import VectorstoreSettings

_PREFIX = "SEALCOMB_"
_LINE_CHARACTERS_MAX = 10_000


class InstallationUnreadable(ValueError):
    """There is no installation where one was named, or its settings are wrong."""


@dataclass(frozen=True, slots=True)
class Managed:
    """An installation."""

    gateway: GatewaySettings
    keyvault: KeyvaultSettings
    vectorstore: VectorstoreSettings
    ingest: IngestSettings
    # Where the restore's mark lies: the data folder, or the folder of the settings.
    folder: Path
    # Whether the folder is locked by the services while they run.
    locks: bool

    def of(self, service: str) -> ServiceSettings:
        """The settings of a service."""
        settings: ServiceSettings = getattr(self, service)
        return settings

    @property
    def objects(self) -> dict[str, str]:
        """The object store of each service that has one, by URL."""
        return {VECTORSTORE: self.vectorstore.objects_url, INGEST: self.ingest.objects_url}

    @property
    def addresses(self) -> dict[str, str]:
        """host:port of every service's inner server; port 0: it does not run."""
        return {
            KEYVAULT: self.gateway.keyvault_address,
            VECTORSTORE: self.gateway.vectorstore_address,
            INGEST: self.gateway.ingest_address,
            GATEWAY: self.ingest.gateway_address or self.gateway.listen,
        }

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keeps the services from starting during the block. Raises DataFolderInUse."""
        if not self.locks:
            yield
            return
        with lock_folder(self.folder):
            yield


def of_data_folder(data: Path) -> Managed:
    """The standalone installation whose state is in a folder. Raises InstallationUnreadable."""
    settings = StandaloneSettings(data_dir=data)
    if not settings.keys_folder.exists():
        raise InstallationUnreadable(f"there is no installation: no keys in {settings.keys_folder}")
    ports = {**dict.fromkeys(SERVICE_ORDER, 0), **_ports(data / PORTS_FILE)}
    layout = Layout(settings, Installation(settings.keys_folder), ports)
    return _managed({name: layout.environment(name, {}) for name in SERVICES}, layout.data, locks=True)


def of_settings_folder(folder: Path) -> Managed:
    """The installation whose services' variables are in `<service>.env`. Raises InstallationUnreadable."""
    found: dict[str, dict[str, str]] = {}
    for service in SERVICES:
        path = folder / f"{service}.env"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InstallationUnreadable(f"{path}: {error.strerror}") from None
        pairs = (line[:_LINE_CHARACTERS_MAX].partition("=") for line in lines if not line.startswith("#"))
        found[service] = {name.strip(): value.strip() for name, equals, value in pairs if equals}
    return _managed(found, folder.absolute(), locks=False)


def _ports(path: Path) -> Mapping[str, int]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {name: int(said[name]) for name in SERVICE_ORDER}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _managed(environments: Mapping[str, Mapping[str, str]], folder: Path, *, locks: bool) -> Managed:
    def fields(service: str) -> dict[str, str]:
        ours = {k: v for k, v in environments[service].items() if k.startswith(_PREFIX)}
        return {name.removeprefix(_PREFIX).lower(): value for name, value in ours.items()}

    try:
        # Validated as given: made in the usual way they would read this process's environment as well.
        return Managed(
            GatewaySettings.model_validate(fields(GATEWAY)),
            KeyvaultSettings.model_validate(fields(KEYVAULT)),
            VectorstoreSettings.model_validate(fields(VECTORSTORE)),
            IngestSettings.model_validate(fields(INGEST)),
            folder,
            locks,
        )
    except ValidationError as error:
        places = sorted({_PREFIX + str(one["loc"][0]).upper() for one in error.errors()})
        raise InstallationUnreadable(f"settings missing or wrong: {', '.join(places)}") from None
