"""Sealed objects of a snapshot, each written once under a name that is given once.

A part is named `<kind>-<random id>` and sealed as Identity(account, collection, kind, object=id); the
manifest (manifest.py) names it with its SHA-256, so a part that is missing, changed, doubled, older or
another collection's is refused. No byte of an object may be parsed, let alone reach native code, before
all of it proved right: `open_object` returns nothing until then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from services.common import ids
from services.common.errors import DataLoss, NotFound
from services.common.objects import ObjectStore
from services.common.sealing import DataKey, Identity, Opener, OpenFailed, Sealer
from services.vectorstore.log import Scope

SEGMENT, GRAPH = "segment", "graph"
# What a snapshot of before there were parts may have; a part has the size that its manifest says.
WHOLE_BYTES_MAX = 64 * 1024**3


class SnapshotBroken(DataLoss):
    """An object of the snapshot is not the one that was written."""

    reason = "SNAPSHOT_BROKEN"

    def __init__(self) -> None:
        super().__init__("the collection's snapshot is missing or changed; restore it from a backup")


@dataclass(frozen=True, slots=True)
class Part:
    """A sealed object: its name, its data key, its size, and the SHA-256 of its bytes."""

    name: str
    key_id: str
    size_bytes: int
    digest: bytes


def new_name(kind: str) -> str:
    """A name for a part that no other has."""
    return f"{kind}-{ids.new_id()}"


def object_key(scope: Scope, name: str) -> str:
    """Where an object of a collection is."""
    return f"{scope.account}/{scope.collection}/{name}"


def put_part(objects: ObjectStore, key: DataKey, scope: Scope, name: str, plaintext: Iterable[bytes]) -> Part:
    """Seals and stores a part."""
    sealed = seal_object(key, _identity(scope, name), plaintext)
    digest, size = put_object(objects, object_key(scope, name), sealed)
    return Part(name, key.id, size, digest)


def read_part(objects: ObjectStore, keys: Mapping[str, DataKey], scope: Scope, part: Part) -> bytearray:
    """The plaintext of a part. Raises SnapshotBroken."""
    try:
        key, chunks = keys[part.key_id], objects.stream(object_key(scope, part.name))
    except KeyError:
        raise SnapshotBroken from None
    return open_object(key, _identity(scope, part.name), part.digest, chunks, part.size_bytes)


def seal_object(key: DataKey, identity: Identity, plaintext: Iterable[bytes]) -> Iterator[bytes]:
    """The sealed object of a plaintext, in chunks."""
    sealer = Sealer(key, identity)
    for chunk in plaintext:
        yield sealer.update(chunk)
    yield sealer.finalize()


def open_object(
    key: DataKey,
    identity: Identity,
    digest: bytes,
    chunks: Iterable[bytes],
    size_bytes_max: int = WHOLE_BYTES_MAX,
) -> bytearray:
    """The plaintext of a sealed object, once all of it has proved right. Raises SnapshotBroken."""
    opener = Opener(key, identity)
    plaintext = bytearray()
    seen = hashlib.sha256()
    size = 0
    try:
        for chunk in chunks:
            size += len(chunk)
            if size > size_bytes_max:
                raise SnapshotBroken
            seen.update(chunk)
            plaintext += opener.update(chunk)
        plaintext += opener.finalize()
    except (OpenFailed, NotFound):
        raise SnapshotBroken from None
    if seen.digest() != digest:
        raise SnapshotBroken
    return plaintext


def put_object(objects: ObjectStore, key: str, sealed: Iterable[bytes]) -> tuple[bytes, int]:
    """Stores an object; its SHA-256 and size."""
    digest = hashlib.sha256()
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in sealed:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    objects.put(key, counted())
    return digest.digest(), size


def _identity(scope: Scope, name: str) -> Identity:
    kind, _, id_ = name.partition("-")
    return Identity(scope.account, scope.collection, kind, id_)
