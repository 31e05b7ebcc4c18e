"""The catalog: an account's collections by name.

Names are sealed in descriptors under the account's catalog key and looked up by a keyed tag, so
that the database shows neither names nor which accounts use the same ones. A name outside the
caller's token, a name of another account and a name that does not exist all answer alike.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Protocol, TypeVar

from services.common import ids
from services.common.clock import Clock
from services.common.context import current_account, current_caller
from services.common.datakeys import DataKeys
from services.common.errors import Aborted, AlreadyExists, NotFound
from services.common.sealing import DataKey, Identity, key_id_of, name_tag, open_sealed, seal
from services.vectorstore.columns import Indexed
from services.vectorstore.index import Metric
from services.vectorstore.log import Head, Scope, seal_head
from services.vectorstore.reader import DataDamaged
from services.vectorstore.schema import CollectionRow, NewCollection
from services.vectorstore.store import Store

CATALOG = "catalog"
COLLECTION = "collection"
_CACHE_MAX = 10_000
_T = TypeVar("_T")


class ResourceKeys(Protocol):
    """Who destroys keys: keyvault, or its twin in tests."""

    async def destroy_collection(self, resource: str) -> str:
        """Destroys all data keys of the current account's collection, for good; the receipt of it."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a collection is. `embedder` is empty unless it is a text collection.

    A `default_ef` of 0 is the service's; `indexed` are the fields that filters may name, None for all.
    """

    id: str
    account: str
    name: str
    dimension: int
    metric: Metric
    embedder: str
    embedder_fingerprint: str
    create_time_ms: int
    default_ef: int = 0
    indexed: Indexed = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A collection in a listing, with its size at its last write."""

    descriptor: Descriptor
    sequence: int
    points: int
    documents: int


def no_such_collection() -> NotFound:
    """The one answer for a missing, foreign or forbidden collection."""
    return NotFound("no such collection", reason="COLLECTION_NOT_FOUND")


class Catalog:
    """Collections of the current call's account."""

    def __init__(
        self,
        store: Store,
        keys: DataKeys,
        resources: ResourceKeys,
        workers: Executor,
        clock: Clock,
        collections_max: int,
    ) -> None:
        self._store = store
        self._keys = keys
        self._resources = resources
        self._workers = workers
        self._clock = clock
        self._most = collections_max
        self._cache: OrderedDict[tuple[str, str], Descriptor] = OrderedDict()
        # Counts forgetting, so that a look-up that was on its way during it is not kept.
        self._forgets = 0
        self._changing: set[asyncio.Task[bool]] = set()

    async def create(self, wanted: Descriptor, idempotency_key: str) -> Descriptor:
        """Makes a collection; id, account and time of `wanted` are filled in here.

        Raises AlreadyExists for a taken name; an idempotency key that was used answers with what it made.
        """
        account = current_account()
        _check_token(wanted.name)
        key = await self._keys.current(CATALOG, CATALOG)
        earlier = await self._created_earlier(account, idempotency_key)
        if earlier is not None:
            return earlier
        if await self._find(account, wanted.name) is not None:
            raise _name_taken()
        now_ms = int(self._clock.now_s() * 1000)
        made = replace(wanted, id=ids.new_id(), account=account, create_time_ms=now_ms)
        collection_key = await self._keys.current(made.id, COLLECTION)
        new = NewCollection(
            id=made.id,
            account=account,
            key_id=key.id,
            name_tag=name_tag(key, "collection", made.name),
            idempotency_tag=name_tag(key, "idempotency", idempotency_key) if idempotency_key else None,
            descriptor=_seal(key, made),
            head=seal_head(collection_key, Scope(account, made.id), Head()),
        )
        try:
            await self._in_thread(lambda: self._store.add(new, self._most))
        except AlreadyExists:
            # Another call was faster, perhaps the same one repeated; this one's key is for nothing.
            await self._resources.destroy_collection(made.id)
            earlier = await self._created_earlier(account, idempotency_key)
            if earlier is None:
                raise _name_taken() from None
            return earlier
        return made

    async def draft(self, wanted: Descriptor) -> Descriptor:
        """A collection that is not there yet, with id, account and time. Raises AlreadyExists."""
        account = current_account()
        _check_token(wanted.name)
        if await self._find(account, wanted.name) is not None:
            raise _name_taken()
        now_ms = int(self._clock.now_s() * 1000)
        return replace(wanted, id=ids.new_id(), account=account, create_time_ms=now_ms)

    async def add(
        self, key: DataKey, made: Descriptor, head: bytes, lsn: int, extent: tuple[int, int], maker: str
    ) -> None:
        """Makes a draft a collection, with the head of what a replica wrote for it, its points and bytes."""
        new = NewCollection(
            id=made.id,
            account=made.account,
            key_id=key.id,
            name_tag=name_tag(key, "collection", made.name),
            idempotency_tag=None,
            descriptor=_seal(key, made),
            head=head,
            head_lsn=lsn,
            points=extent[0],
            size_bytes=extent[1],
        )
        try:
            await self._in_thread(lambda: self._store.add(new, self._most, maker))
        except AlreadyExists:
            raise _name_taken() from None

    async def get(self, name: str) -> Descriptor:
        """The collection with a name. Raises NotFound."""
        account = current_account()
        _check_token(name)
        # Asked each time, so that the cache of names ends with the key.
        await self._keys.current(CATALOG, CATALOG)
        known = self._cache.get((account, name))
        if known is not None:
            self._cache.move_to_end((account, name))
            _check_permit(known.id)
            return known
        forgets = self._forgets
        row = await self._find(account, name)
        if row is None:
            raise no_such_collection()
        descriptor = await self._open(row)
        if descriptor.name != name:
            raise DataDamaged
        _check_permit(descriptor.id)
        if forgets == self._forgets:
            self._cache[(account, name)] = descriptor
            if len(self._cache) > _CACHE_MAX:
                self._cache.popitem(last=False)
        return descriptor

    async def by_id(self, id_: str) -> Descriptor:
        """The collection with an id. Raises NotFound."""
        if not ids.is_id(id_):
            raise no_such_collection()
        account = current_account()
        row = await self._look(lambda: self._store.by_id(account, id_))
        if row is None:
            raise no_such_collection()
        descriptor = await self._open(row)
        _check_token(descriptor.name)
        _check_permit(id_)
        return descriptor

    async def reread(self, descriptor: Descriptor) -> Descriptor:
        """A collection as it is now, whoever changed it. Raises NotFound."""
        self.forget_account(descriptor.account)
        row = await self._look(lambda: self._store.by_id(descriptor.account, descriptor.id))
        if row is None:
            raise no_such_collection()
        return await self._open(row)

    async def change(self, descriptor: Descriptor, changed: Descriptor) -> None:
        """Stores a changed descriptor. Raises Aborted if another call changed it first."""
        row = await self._in_thread(lambda: self._store.by_id(descriptor.account, descriptor.id))
        if row is None:
            raise no_such_collection()
        if await self._open(row) != descriptor:
            self._cache.pop((descriptor.account, descriptor.name), None)
            raise Aborted("the collection was changed by another call; repeat this one")
        key = await self._keys.by_id(CATALOG, CATALOG, row.key_id)
        sealed = _seal(key, changed)

        async def replaced() -> bool:
            try:
                return await self._in_thread(lambda: self._store.replace_descriptor(row, sealed))
            finally:
                # Whoever reads meanwhile must not keep what it read.
                self._forgets += 1
                self._cache.pop((descriptor.account, descriptor.name), None)

        # A caller that leaves while the thread commits would otherwise leave the old one in the cache.
        changing = asyncio.create_task(replaced())
        self._changing.add(changing)
        changing.add_done_callback(self._changing.discard)
        if not await asyncio.shield(changing):
            raise Aborted("the collection was changed by another call; repeat this one")

    async def listed(self, descriptor: Descriptor) -> Listed:
        """A collection with its size at its last write."""
        row = await self._look(lambda: self._store.by_id(descriptor.account, descriptor.id))
        if row is None:
            raise no_such_collection()
        return Listed(descriptor, row.sequence, row.points, row.documents)

    async def log_size(self, descriptor: Descriptor) -> tuple[int, int]:
        """Records and bytes of a collection's log."""
        return await self._in_thread(lambda: self._store.log_size(descriptor.id))

    async def page(self, after: int, size: int) -> tuple[list[Listed], int]:
        """Collections that the token may see, in order of creation, those after a sequence.

        With them the sequence for the next page, 0 at the end.
        """
        account = current_account()
        allowed = current_caller().context.collections
        found: list[Listed] = []
        while True:
            rows = await self._in_thread(lambda start=after: self._store.page(account, start, size + 1))  # type: ignore[misc]
            for row in rows:
                if len(found) == size:
                    return found, found[-1].sequence
                after = row.sequence
                descriptor = await self._open(row)
                if not allowed or descriptor.name in allowed:
                    found.append(Listed(descriptor, row.sequence, row.points, row.documents))
            if len(rows) <= size:
                return found, 0

    async def destroy_keys(self, descriptor: Descriptor) -> str:
        """Makes all data of a collection unreadable for good; what is left is garbage. The receipt of it."""
        return await self._resources.destroy_collection(descriptor.id)

    def forget_account(self, account: str) -> bool:
        """Forgets the names of an account's collections; whether there were some."""
        self._forgets += 1
        forgotten = [known for known in self._cache if known[0] == account]
        for known in forgotten:
            del self._cache[known]
        return bool(forgotten)

    def forget_all(self) -> None:
        """Forgets all names."""
        self._forgets += 1
        self._cache.clear()

    async def _created_earlier(self, account: str, idempotency_key: str) -> Descriptor | None:
        if not idempotency_key:
            return None
        for key in await self._tag_keys(account):
            tag = name_tag(key, "idempotency", idempotency_key)
            row = await self._look(lambda tag=tag: self._store.by_idempotency_tag(account, tag))  # type: ignore[misc]
            if row is not None:
                return await self._open(row)
        return None

    async def _find(self, account: str, name: str) -> CollectionRow | None:
        for key in await self._tag_keys(account):
            tag = name_tag(key, "collection", name)
            row = await self._look(lambda tag=tag: self._store.by_tag(account, tag))  # type: ignore[misc]
            if row is not None:
                return row
        return None

    async def _tag_keys(self, account: str) -> list[DataKey]:
        """The current key and those that older collections were named under."""
        current = await self._keys.current(CATALOG, CATALOG)
        named = await self._look(lambda: self._store.key_ids(account))
        older = [key_id for key_id in named if key_id != current.id]
        return [current, *[await self._keys.by_id(CATALOG, CATALOG, key_id) for key_id in older]]

    async def _open(self, row: CollectionRow) -> Descriptor:
        key = await self._keys.by_id(CATALOG, CATALOG, key_id_of(row.descriptor))
        raw = open_sealed(key, _identity(row.account, row.id), row.descriptor)
        fields = json.loads(raw)
        indexed = fields.get("indexed")
        fields["indexed"] = None if indexed is None else frozenset(indexed)
        return Descriptor(**(fields | {"metric": Metric(fields["metric"])}))

    async def _look(self, function: Callable[[], _T]) -> _T:
        """A point read: far below a millisecond where the database is a file, a journey elsewhere."""
        return function() if self._store.is_local else await self._in_thread(function)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)


def _check_token(name: str) -> None:
    """Raises NotFound unless the token may use the collection."""
    allowed = current_caller().context.collections
    if allowed and name not in allowed:
        raise no_such_collection()


def _check_permit(id_: str) -> None:
    """Raises NotFound unless the permit, if it is for certain collections, is for this one."""
    allowed = current_caller().context.collection_ids
    if allowed and id_ not in allowed:
        raise no_such_collection()


def _name_taken() -> AlreadyExists:
    return AlreadyExists("there is a collection of this name; choose another", reason="COLLECTION_EXISTS")


def _identity(account: str, id_: str) -> Identity:
    return Identity(account, CATALOG, "descriptor", id_)


def _seal(key: DataKey, descriptor: Descriptor) -> bytes:
    fields = asdict(descriptor) | {"metric": descriptor.metric.value}
    # What is not set is left out, so that an older version reads it too.
    if not descriptor.default_ef:
        del fields["default_ef"]
    if descriptor.indexed is None:
        del fields["indexed"]
    else:
        fields["indexed"] = sorted(descriptor.indexed)
    return seal(key, _identity(descriptor.account, descriptor.id), json.dumps(fields).encode())
