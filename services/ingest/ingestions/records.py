"""What an ingestion and its items are. No repr shows what a caller set or a source named."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from services.ingest.sources.contract import Item


class State(enum.Enum):
    """Where an ingestion stands. REMOVING deletes what it brought, and is then CANCELLED."""

    QUEUED = "queued"
    RUNNING = "running"
    NEEDS_TOKEN = "needs token"  # noqa: S105  (a state)
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REMOVING = "removing"


ENDED = frozenset({State.SUCCEEDED, State.PARTIAL, State.FAILED, State.CANCELLED})
LIVE = frozenset({State.QUEUED, State.RUNNING, State.NEEDS_TOKEN})


class ItemState(enum.Enum):
    """Where an item stands: to be fetched, to be indexed, done, set aside, or to be removed."""

    PENDING = "pending"
    FETCHED = "fetched"
    INDEXED = "indexed"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Counts:
    """What the latest run has done."""

    found: int = 0
    fetched: int = 0
    unchanged: int = 0
    indexed: int = 0
    failed: int = 0
    removed: int = 0


@dataclass(frozen=True, slots=True)
class Payload:
    """What an ingestion is about: the sealed part of its row."""

    collection: str = field(repr=False)
    kind: str
    settings: Mapping[str, Any] = field(repr=False)
    cron: str = ""
    time_zone: str = ""

    def to_bytes(self) -> bytes:
        """The payload as it is sealed."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Payload:
        """The payload in bytes that `to_bytes` made."""
        return cls(**json.loads(raw))


@dataclass(frozen=True, slots=True)
class Row:
    """An ingestion as it is kept."""

    id: str
    account: str
    collection_id: str
    connection_id: str
    create_ms: int
    state: State
    reason: str
    grant_id: str
    grant_text: str = field(repr=False)
    holder: str
    lease_until_ms: int
    fence: int
    attempts: int
    not_before_ms: int
    next_run_ms: int | None
    run: int
    listed: bool
    # When the latest listing from the beginning was begun.
    full_ms: int
    counts: Counts
    start_ms: int
    finish_ms: int
    tag_key_id: str
    idempotency_tag: bytes | None
    payload: bytes = field(repr=False)
    cursor: bytes | None = field(repr=False)

    @property
    def temporary(self) -> bool:
        """Whether it runs with a temporary token."""
        return not self.connection_id


@dataclass(frozen=True, slots=True)
class ItemRow:
    """An item as it is kept."""

    ingestion_id: str
    tag: bytes
    state: ItemState
    reason: str
    attempts: int
    run: int
    version_tag: bytes
    sealed: bytes = field(repr=False)
    object_key: str = ""
    next_key: str = ""
    fetched: bytes | None = field(default=None, repr=False)
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """What a source said of an item's content, sealed beside it."""

    content_type: str
    metadata: Mapping[str, Any] = field(repr=False)

    def to_bytes(self) -> bytes:
        """The content's description as it is sealed."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Content:
        """The description in bytes that `to_bytes` made."""
        return cls(**json.loads(raw))


@dataclass(frozen=True, slots=True)
class Ingestion:
    """An ingestion as it is shown."""

    row: Row
    payload: Payload


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item that was set aside."""

    name: str = field(repr=False)
    url: str = field(repr=False)
    reason: str
    attempts: int


def item_to_bytes(item: Item) -> bytes:
    """An item as it is sealed."""
    return json.dumps(asdict(item)).encode()


def item_of(raw: bytes) -> Item:
    """The item in bytes that `item_to_bytes` made."""
    fields = json.loads(raw)
    if fields["principals"] is not None:
        fields["principals"] = tuple(fields["principals"])
    return Item(**fields)
