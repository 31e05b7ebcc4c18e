"""How an installation is: every service, its database, its schema, its objects, and keyvault's KMS.

Looks and changes nothing. What cannot be looked at is said, never guessed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from services.common.errors import SealcombError
from services.common.methods import KEYVAULT
from services.common.objects import open_store
from services.standalone.admin import peers, store
from services.standalone.admin.managed import Managed
from services.standalone.config import SERVICE_ORDER

# No account has this id, so nothing is listed.
_NOBODY = "0/"


@dataclass(frozen=True, slots=True)
class Service:
    """One service. An empty `fault` says that all is well."""

    service: str
    state: str
    database: str
    schema: str
    objects: str
    kms: str
    fault: str

    def as_row(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def version() -> str:
    """The version of the programs that are installed here."""
    return metadata.version("sealcomb")


async def look(managed: Managed) -> list[Service]:
    """All services, in the order in which they start."""
    said = await peers.states(managed.addresses, managed.gateway.tls)
    return [_service(managed, name, said[name]) for name in SERVICE_ORDER]


def _service(managed: Managed, name: str, state: str) -> Service:
    faults = [] if state == peers.SERVING else [f"it is {state}" if state == peers.NOT_SERVING else state]
    kind = schema = objects = kms = ""
    try:
        found = store.schema_of(managed.of(name).database_url, name)
    except store.DatabaseAway as error:
        faults.append(f"database: {error}")
    else:
        kind, schema = found.kind, found.revision
        if found.revision != found.head:
            faults.append(f"schema: this version's is {found.head}")
    if name in managed.objects:
        url = managed.objects[name]
        objects = url.partition(":")[0]
        try:
            open_store(url).list(_NOBODY)
        except (SealcombError, OSError, ValueError) as error:
            faults.append(f"objects: {error}")
    if name == KEYVAULT:
        # That it answers is keyvault's to say: it serves only with it.
        kms = managed.keyvault.kms
        try:
            managed.keyvault.check_kms()
        except ValueError as error:
            faults.append(str(error))
    return Service(name, state, kind, schema, objects, kms, "; ".join(faults))
