"""Twins for tests of the vectorstore: keyvault in memory, a clock to turn, an object store that fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from services.common import ids
from services.common.context import CallContext, Caller, acting_as, current_account
from services.common.errors import KeyDisabled, NotFound
from services.common.objects import FolderStore
from services.common.sealing import DataKey
from services.vectorstore.node import Limits, Node

ACCOUNT = "0" * 25 + "1"
OTHER = "0" * 25 + "2"


class FakeKeyvault:
    """Data keys in memory, each account's its own."""

    def __init__(self) -> None:
        self.disabled: set[str] = set()
        self.destroyed: set[tuple[str, str]] = set()
        self.releases = 0
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

    async def destroy_resource(self, resource: str) -> None:
        """See ResourceKeys."""
        self.destroyed.add((current_account(), resource))


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

    def put(self, key: str, parts: Iterable[bytes]) -> None:
        """Stores, or raises the failure."""
        if self.failure is not None:
            raise self.failure
        super().put(key, parts)


def caller(account: str = ACCOUNT, collections: tuple[str, ...] = ()) -> Caller:
    """A verified caller of an account."""
    context = CallContext(
        "gateway", ("vectorstore",), account, "token", ("read", "write"), collections, "", 0, 1e12, "request"
    )
    return Caller(replace(context), "text")


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
