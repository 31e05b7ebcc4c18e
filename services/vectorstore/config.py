"""The vectorstore's settings, and the embedding model that "default" means."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from services.common.settings import ServiceSettings

_MIB = 1024 * 1024


class VectorstoreSettings(ServiceSettings):
    """Read from the environment, prefix SEALCOMB_."""

    # host:port of keyvault.
    keyvault_address: str = Field(pattern=r"^[^\s]+:\d{1,5}$")
    # host:port of the gateway's inner server; none: what accounts use is not counted.
    gateway_address: str | None = Field(default=None, pattern=r"^[^\s]+:\d{1,5}$")
    # Where other replicas reach this one, host:port; none: no other vectorstore may call this one.
    replica_address: str | None = Field(default=None, pattern=r"^[^\s]+:\d{1,5}$", max_length=256)
    # A replica that the database has heard nothing of for so long is replaced.
    lease_s: float = Field(default=4.0, ge=0.5, le=60)
    # Where snapshots are kept: file:<folder>, or s3://<bucket>/<prefix>.
    objects_url: str
    # model.json of the embedding model of text collections; none: there are no text collections.
    embedder_info: Path | None = None
    # Memory for open collections; the least used are closed beyond it.
    resident_bytes_max: int = Field(default=2048 * _MIB, ge=64 * _MIB)
    # What one collection, and all of an account's together, may hold; bytes are those of memory while open.
    collection_bytes_max: int = Field(default=1024 * _MIB, ge=_MIB)
    collection_points_max: int = Field(default=10_000_000, ge=1)
    account_bytes_max: int = Field(default=16 * 1024 * _MIB, ge=_MIB)
    account_points_max: int = Field(default=20_000_000, ge=1)
    collections_per_account_max: int = Field(default=1000, ge=1, le=1_000_000)
    # A log longer than this is folded into a snapshot.
    snapshot_log_bytes: int = Field(default=8 * _MIB, ge=1)
    # Deleted content leaves log and snapshots after at most this long, while the collection is open.
    erase_after_s: float = Field(default=600.0, ge=0.0)


@dataclass(frozen=True, slots=True)
class EmbedderInfo:
    """An embedding model: its name, the dimension of its vectors, and a hash of its weights."""

    name: str
    dimension: int
    fingerprint: str


def read_embedder_info(path: Path) -> EmbedderInfo:
    """The model that a model.json describes. Raises ValueError."""
    fields = json.loads(path.read_text())
    # As the embedder itself has it: the hash of what the model was made from, else of the graph.
    fingerprint = str(fields.get("fingerprint") or fields["sha256"])
    info = EmbedderInfo(str(fields["name"]), int(fields["dimension"]), fingerprint)
    if (
        not info.name
        or not 1 <= info.dimension <= 4096
        or not re.fullmatch(r"[0-9a-f]{64}", info.fingerprint)
    ):
        raise ValueError(f"{path.name} does not describe an embedding model")
    return info
