"""WebDAV: files under a folder, of Nextcloud and others.

From RFC 4918 (PROPFIND with Depth 1, multistatus, getetag) and Nextcloud's developer manual, "WebDAV
basics". WebDAV tells no changes, so every listing is a full one; an ETag is the version. Addresses in an
answer are taken only from under the folder that was asked for, so that no answer leads elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote

from pydantic import Field, field_validator

from services.ingest.egress.client import Egress
from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.target import join_url, parse_url
from services.ingest.sources.answers import cut
from services.ingest.sources.calls import Calls, RetryLimits, Timing, basic
from services.ingest.sources.contract import (
    ID_CHARS_MAX,
    Batch,
    Change,
    Credential,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    SourceAnswerInvalid,
    SourceDenied,
    SourceSettings,
    Unread,
)
from services.ingest.sources.cursors import CursorState, read_cursor, write_cursor
from services.ingest.sources.markup import read_xml, text_of
from services.ingest.sources.settings import checked_url

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_FOLDERS_MAX = 20_000
_DEPTH_MAX = 64
_QUESTION = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><getetag/><getlastmodified/>'
    b"<getcontentlength/><getcontenttype/><resourcetype/></prop></propfind>"
)


class WebDavSettings(SourceSettings):
    """Which folder to take in."""

    # As in https://cloud.example.com/remote.php/dav/files/USER/Documents/
    url: str = Field(max_length=2048)

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        url = checked_url(value)
        if "?" in url:
            raise ValueError("a folder's address has no query")
        return url if url.endswith("/") else f"{url}/"


class _State(CursorState):
    """Folders still to list, as paths under the first one; `seen` counts those listed."""

    waiting: tuple[str, ...] = ("",)
    seen: int = 0


class WebDavType:
    """WebDAV."""

    kind: ClassVar[str] = "webdav"
    title: ClassVar[str] = "WebDAV (Nextcloud and others)"
    token_form: ClassVar[str] = "USER:PASSWORD"  # noqa: S105  # a form
    settings_model: ClassVar[type[SourceSettings]] = WebDavSettings
    oauth: OAuthProfile | None = None

    def __init__(self, *, timing: Timing | None = None, limits: RetryLimits | None = None) -> None:
        self._timing = timing
        self._limits = limits

    def hosts(self, settings: WebDavSettings) -> tuple[str, ...]:
        """The server's host."""
        return (parse_url(settings.url).netloc,)

    def open(self, settings: WebDavSettings, credential: Credential | None, egress: Egress) -> WebDavSource:
        """A source for one job. Without a credential it is a public folder."""
        calls = Calls(
            egress,
            name="the WebDAV server",
            hosts=self.hosts(settings),
            credential=credential,
            authorize=basic,
            timing=self._timing,
            limits=self._limits,
        )
        return WebDavSource(settings, calls)


class WebDavSource:
    """See Source. An item's id is its path under the folder, percent-encoded as the server does."""

    kind = WebDavType.kind

    def __init__(self, settings: WebDavSettings, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Folder by folder, each time."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        while state.waiting:
            folder, *waiting = state.waiting
            changes: list[Change] = []
            try:
                for path, prop in await self._children(folder):
                    if prop.find("{DAV:}resourcetype/{DAV:}collection") is None:
                        changes.append(self._item(path, prop))
                    elif path.count("/") <= _DEPTH_MAX:
                        waiting.append(path if path.endswith("/") else f"{path}/")
            except (ItemGone, SourceDenied) as error:
                if not folder:
                    raise
                changes.append(Unread(folder, cut(unquote(folder)), error))
            state = _State(waiting=tuple(waiting), seen=state.seen + 1)
            if state.seen + len(waiting) > _FOLDERS_MAX:
                raise SourceAnswerInvalid("there are more folders than the limit; name one further down")
            yield Batch(tuple(changes), write_cursor(self._settings, state))
        yield Batch((), write_cursor(self._settings, _State()), complete=True, full=True)

    async def fetch(self, item: Item) -> Fetched:
        """A file's bytes."""
        # An id that a listing cannot have given does not lead out of the folder.
        if {"", ".", ".."} & set(unquote(item.id).split("/")) or "?" in item.id or "#" in item.id:
            raise ItemGone("there is no such file in the folder")
        answer = await self._calls.download(self._settings.url + item.id)
        kind = answer.headers.get("content-type", "") or item.content_type
        return Fetched(answer.content, kind, {"path": unquote(item.id)})

    async def _children(self, folder: str) -> list[tuple[str, Element]]:
        url = self._settings.url + folder
        answer = await self._calls.send(
            url,
            method="PROPFIND",
            headers={"depth": "1", "content-type": "application/xml; charset=utf-8"},
            content=_QUESTION,
        )
        if answer.status != 207:
            raise SourceAnswerInvalid("the WebDAV server does not answer as WebDAV does")
        found: dict[str, Element] = {}
        responses = read_xml(answer.content).findall("{DAV:}response")
        # The folder itself is always among them: an answer without it is no listing of an empty one.
        if not responses:
            raise SourceAnswerInvalid("the WebDAV server's answer is no listing of a folder")
        for response in responses:
            path = _below(url, text_of(response, "{DAV:}href"))
            for prop in _props(response):
                if path is not None and len(folder + path) <= ID_CHARS_MAX:
                    found[folder + path] = prop
        return list(found.items())

    def _item(self, path: str, prop: Element) -> Item:
        size = text_of(prop, "{DAV:}getcontentlength")
        modified = text_of(prop, "{DAV:}getlastmodified")
        return Item(
            id=path,
            name=cut(unquote(path)),
            version=text_of(prop, "{DAV:}getetag") or f"{modified} {size}",
            url=self._settings.url + path,
            content_type=text_of(prop, "{DAV:}getcontenttype"),
            size_bytes=int(size) if size.isdecimal() and len(size) < 19 else 0,
        )


def _props(response: Element) -> Iterator[Element]:
    """The properties that the server could give; a status of its own says so for each group of them."""
    for group in response.findall("{DAV:}propstat"):
        prop = group.find("{DAV:}prop")
        if prop is not None and " 200" in text_of(group, "{DAV:}status"):
            yield prop


def _below(folder_url: str, href: str) -> str | None:
    """A child's path relative to its folder; None for whatever is not right under it, itself among that."""
    try:
        child, folder = parse_url(join_url(folder_url, href)), parse_url(folder_url)
    except EgressRefused:
        return None
    # Servers encode differently than they were asked, so the comparison is of what is meant.
    prefix = unquote(folder.path)
    if child.netloc != folder.netloc or "?" in child.path or not unquote(child.path).startswith(prefix):
        return None
    rest = child.path.split("/", folder.path.count("/"))[-1]
    name = unquote(rest).removesuffix("/")
    if not name or name in (".", "..") or "/" in name:
        return None
    return rest
