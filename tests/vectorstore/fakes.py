"""Twins for tests of the vectorstore: keyvault in memory, a clock to turn, an object store that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct

from services.common import ids
from services.common.context import CallContext, Caller, acting_as, current_account
from services.common.datakeys import AgedKeys
from services.common.errors import KeyDisabled, NotFound
from services.common.objects import FolderStore
from services.common.sealing import DataKey
from services.vectorstore import editing, writing
from services.vectorstore.catalog import Descriptor
from services.vectorstore.collection import Collection
from services.vectorstore.documents import Stored
from services.vectorstore.filters import Filter
from services.vectorstore.index import Metric
from services.vectorstore.metadata import encode, fields_of
from services.vectorstore.node import Limits, Node
from services.vectorstore.operations import Document, Passage, PutDocument, UpsertPoints
from services.vectorstore.residency import Use
from services.vectorstore.searching import Wanted
from services.vectorstore.upkeep import Keeper

ACCOUNT = "0" * 25 + "1"
OTHER = "0" * 25 + "2"


class FakeKeyvault:
    """Data keys in memory, each account's its own."""

    def __init__(self) -> None:
        self.disabled: set[str] = set()
        self.destroyed: set[tuple[str, str]] = set()
        self.releases = 0
        self.reported: dict[tuple[str, str, str], set[str]] = {}
        self._current: dict[tuple[str, str, str], DataKey] = {}
        self._by_id: dict[tuple[str, str, str, str], DataKey] = {}

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """See KeySource."""
        account = current_account()
        self.releases += 1
        if account in self.disabled:
            raise KeyDisabled
        if (account, resource) in self.destroyed:
            raise NotFound("no such data key")
        slot = (account, resource, purpose)
        if key_id:
            try:
                return self._by_id[(*slot, key_id)]
            except KeyError:
                raise NotFound("no such data key") from None
        if slot not in self._current:
            self.rotate(*slot)
        return self._current[slot]

    def rotate(self, account: str, resource: str, purpose: str) -> None:
        """Makes a new current key; the old ones stay."""
        key = DataKey(ids.new_id(), ids.new_id().encode() + b"secret")
        self._current[(account, resource, purpose)] = key
        self._by_id[(account, resource, purpose, key.id)] = key

    async def report_data_keys(
        self, resource: str, purpose: str, in_use: Iterable[str], looked_s: float
    ) -> AgedKeys:
        """Destroys what is not in use, at once."""
        slot = (current_account(), resource, purpose)
        self.reported[slot] = set(in_use)
        keep = {*in_use, self._current[slot].id}
        for name in [name for name in self._by_id if name[:3] == slot and name[3] not in keep]:
            del self._by_id[name]
        left = sum(name[:3] == slot for name in self._by_id) - 1
        return AgedKeys(left, 0.0)

    async def destroy_collection(self, resource: str) -> str:
        """See ResourceKeys."""
        self.destroyed.add((current_account(), resource))
        return f"receipt of {resource}"


class FakeClock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.s = 1_800_000_000.0

    def now_s(self) -> float:
        """Wall time."""
        return self.s

    def monotonic_s(self) -> float:
        """The same."""
        return self.s


class FailingStore(FolderStore):
    """A folder of objects whose writes fail on demand."""

    failure: Exception | None = None

    def put(self, key: str, parts: Iterable[bytes], *, new: bool = False) -> None:
        """Stores, or raises the failure."""
        if self.failure is not None:
            raise self.failure
        super().put(key, parts, new=new)


def caller(account: str = ACCOUNT, collections: tuple[str, ...] = ()) -> Caller:
    """A verified caller of an account."""
    context = CallContext(
        "gateway", ("vectorstore",), account, "token", ("read", "write"), collections, "", 0, 1e12, "request"
    )
    return Caller(context, "text")


@contextmanager
def acting(account: str = ACCOUNT, collections: tuple[str, ...] = ()) -> Iterator[None]:
    """Makes an account's caller current."""
    with acting_as(caller(account, collections)):
        yield


def open_node(
    folder: Path, keyvault: FakeKeyvault, limits: Limits | None = None, clock: FakeClock | None = None
) -> Node:
    """A node whose data is in a folder."""
    return Node(
        f"sqlite:///{folder}/vectorstore.db",
        FailingStore(folder / "objects", clock or FakeClock()),
        keyvault,
        clock or FakeClock(),
        limits or Limits(),
    )


class Space:
    """One account's collections on a node, as the servicers use them."""

    def __init__(self, node: Node, account: str = ACCOUNT) -> None:
        self.node = node
        self.account = account

    async def make(
        self, name: str = "things", dimension: int = 4, metric: Metric = Metric.COSINE, *, text: bool = False
    ) -> Descriptor:
        """Creates a collection."""
        embedder = ("tiny", "ab" * 32) if text else ("", "")
        wanted = Descriptor("", "", name, dimension, metric, *embedder, 0)
        with acting(self.account):
            return await self.node.catalog.create(wanted, "")

    async def use(self, name: str = "things") -> Use:
        """The open collection."""
        with acting(self.account):
            return await self.node.residency.use(await self.node.catalog.get(name))

    async def upsert(
        self,
        vectors: Mapping[str, Sequence[float]],
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "things",
    ) -> int:
        """Writes points by id."""
        raws = [metadata_of((metadata or {}).get(id_, {})) for id_ in vectors]
        operation = UpsertPoints(
            list(vectors),
            np.array(list(vectors.values()), np.float32),
            raws,
            [f"text of {id_}" for id_ in vectors],
        )
        written = await editing.upsert(await self.use(name), operation, [fields_of(raw) for raw in raws])
        return written.count

    async def delete(self, *ids_: str, name: str = "things") -> int:
        """Deletes points by id."""
        return await editing.delete(await self.use(name), ids_)

    async def put(
        self,
        id_: str,
        texts: Sequence[str],
        name: str = "things",
        *,
        key: str = "",
        principals: Sequence[str] = (),
    ) -> Stored:
        """Puts a document whose vectors follow from its texts."""
        use = await self.use(name)
        document = Document(
            id_, f"{id_}.txt", "text/plain", 1, 0, b"", tuple(principals), 0, f"object/{id_}", key
        )
        passages = [Passage(place, 0, text) for place, text in enumerate(texts)]
        dimension = use.descriptor.dimension
        vectors = np.array([vector_of(text, dimension) for text in texts], np.float32).reshape(-1, dimension)
        return await writing.put_document(use, PutDocument(document, passages, vectors), {})

    async def nearest(
        self, vector: Sequence[float], k: int = 10, name: str = "things", condition: Filter | None = None
    ) -> list[str]:
        """The ids of the nearest points."""
        use = await self.use(name)
        wanted = Wanted(np.array(vector, np.float32), k, 0, condition, with_vectors=False)
        answer = await self.node.finder.query(use, wanted)
        return [hit.point.id for hit in answer.hits]

    async def contents(self, name: str = "things") -> dict[str, tuple[bytes, bytes, str]]:
        """All points: vector, metadata, text."""
        state = (await self.use(name)).collection.state
        found = {}
        for id_ in state.ids_after(""):
            row = state.row_of(id_)
            assert row is not None
            point = state.point(row)
            vector = state.index.vectors(np.array([row]))[0]
            found[id_] = (vector.tobytes(), point.metadata, point.text)
        return found


def vector_of(text: str, dimension: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A vector that follows from a text."""
    return np.random.default_rng(sum(map(ord, text)) + len(text)).normal(size=dimension).astype(np.float32)


def metadata_of(fields: Mapping[str, Any]) -> bytes:
    """Metadata as stored."""
    struct = Struct()
    struct.update(dict(fields))
    return encode(struct, "metadata")


async def settle(collection: Collection) -> None:
    """Waits until upkeep has nothing to do."""
    owner = getattr(collection.on_applied, "__self__", None)
    assert isinstance(owner, Keeper)
    while owner.busy:  # noqa: ASYNC110  (nothing in the product wants to be told)
        await asyncio.sleep(0.01)
