"""What ingest's modules hand one another: collections, documents, passages, hits.

`metadata` and `filter` belong to the caller and to vectorstore; here they are carried, never looked
into. No repr shows what a caller sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as vectorstore describes it; `embedder` is empty unless it is a text collection."""

    id: str
    dimension: int
    embedder: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document as vectorstore keeps it, beside its passages."""

    id: str
    name: str = field(repr=False)
    content_type: str
    size_bytes: int
    passages: int
    pages: int
    metadata: object = field(repr=False)
    principals: tuple[str, ...] = field(repr=False)
    create_time_ms: int
    object_key: str
    idempotency_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """One searchable piece of a document; `vector` is little-endian float32."""

    index: int
    page: int
    text: str = field(repr=False)
    vector: bytes = field(repr=False)
    heading: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """What a caller says about a document before sending it."""

    collection: str = field(repr=False)
    name: str = field(repr=False)
    content_type: str
    metadata: object = field(repr=False)
    principals: tuple[str, ...] = field(repr=False)
    idempotency_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """One search, validated. `mode` is HYBRID, DENSE or LEXICAL."""

    collection: str = field(repr=False)
    text: str = field(repr=False)
    top_k: int
    mode: str
    filter: object = field(repr=False)
    as_principals: tuple[str, ...] = field(repr=False)
    one_per_document: bool = False
    rerank: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found."""

    document_id: str
    document_name: str = field(repr=False)
    page: int
    chunk_index: int
    text: str = field(repr=False)
    score: float
    metadata: object = field(repr=False)
    heading: str = field(default="", repr=False)
