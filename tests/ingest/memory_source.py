"""The twin of a real source, in memory: it keeps the contract, changes on command and fails on command."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from services.common.errors import SealcombError
from services.ingest.egress.client import Egress
from services.ingest.sources.contract import (
    Batch,
    Change,
    Credential,
    CredentialRefused,
    CursorExpired,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    Removed,
    Source,
    SourceSettings,
    Unread,
)


class MemorySettings(SourceSettings):
    """What can be set."""

    folder: str = "all"
    host: str = "memory.example"
    limit: int = 0


@dataclass
class Thing:
    """What the source holds."""

    item: Item
    content: bytes
    # Raised instead of giving the content, so many times (-1: always).
    error: SealcombError | None = None
    errors: int = -1


@dataclass
class MemorySourceType:
    """A source whose content a test sets. `tokens` are those that it accepts."""

    kind: ClassVar[str] = "memory"
    title: ClassVar[str] = "Memory"
    token_form: ClassVar[str] = "any text"
    settings_model: ClassVar[type[SourceSettings]] = MemorySettings

    oauth: OAuthProfile | None = None
    things: dict[str, Thing] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=lambda: {"good"})
    # Everything that was done, in order, with the token that was shown.
    log: list[tuple[str, str]] = field(default_factory=list)
    # The cursors that listings began with.
    cursors: list[bytes | None] = field(default_factory=list)
    batch_items: int = 3
    # A listing by changes instead of a whole one each time.
    incremental: bool = False
    removed: list[str] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    cursor_expired: bool = False
    # Called before each fetch; a test may make trouble or wait there.
    before_fetch: Callable[[Item], Any] | None = None
    before_batch: Callable[[int], Any] | None = None

    def put(self, id_: str, text: str, **changes: Any) -> None:
        """Adds or changes a thing; its version goes up."""
        old = self.things.get(id_)
        number = int(old.item.version) + 1 if old else 1
        item = Item(id_, f"{id_}.txt", str(number), f"https://memory.example/{id_}")
        self.things[id_] = Thing(replace(item, **changes), text.encode())

    def hosts(self, settings: MemorySettings) -> tuple[str, ...]:
        """The one host."""
        return (settings.host,)

    def open(self, settings: MemorySettings, credential: Credential | None, egress: Egress) -> Source:
        """The source."""
        assert credential is not None
        return MemorySource(self, credential)

    def fetches(self) -> list[str]:
        """The items that were fetched, in order."""
        return [what for what, _token in self.log if not what.startswith("list")]


class MemorySource:
    """One opened source."""

    kind = "memory"

    def __init__(self, type_: MemorySourceType, credential: Credential) -> None:
        self._type = type_
        self._credential = credential

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Everything there is, some at a time; a cursor that is a number resumes within a listing."""
        start = 0
        self._type.cursors.append(cursor)
        if cursor is not None and self._type.cursor_expired:
            self._type.cursor_expired = False
            raise CursorExpired("too old")
        if cursor is not None and cursor.startswith(b"at "):
            start = int(cursor[3:])
        await self._authorize("list")
        changes: list[Change] = [thing.item for thing in self._type.things.values()]
        changes += [Removed(id_) for id_ in self._type.removed]
        changes += self._type.unread
        for number in itertools.count():
            if self._type.before_batch is not None:
                await _maybe(self._type.before_batch(number))
            end = start + self._type.batch_items
            last = end >= len(changes)
            full = last and (not self._type.incremental or cursor is None)
            yield Batch(
                tuple(changes[start:end]), b"end" if last else b"at %d" % end, complete=last, full=full
            )
            if last:
                return
            start = end

    async def fetch(self, item: Item) -> Fetched:
        """The content, unless a test wants otherwise."""
        await self._authorize(item.id)
        if self._type.before_fetch is not None:
            await _maybe(self._type.before_fetch(item))
        thing = self._type.things.get(item.id)
        if thing is None:
            raise ItemGone("gone")
        if thing.error is not None and thing.errors:
            thing.errors -= 1
            raise thing.error
        return Fetched(thing.content, "text/plain", {"kind": "memory"})

    async def _authorize(self, what: str) -> None:
        token = await self._credential.token()
        self._type.log.append((what, token))
        if token not in self._type.tokens:
            token = await self._credential.token(refused=True)
            self._type.log.append((what, token))
            if token not in self._type.tokens:
                raise CredentialRefused("not accepted")


async def _maybe(result: Any) -> None:
    if asyncio.iscoroutine(result) or isinstance(result, asyncio.Future):
        await result
