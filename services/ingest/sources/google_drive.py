"""Google Drive: files and folders, with Google's own documents exported to office formats.

From the Drive API v3 reference (developers.google.com/workspace/drive/api): files.list,
files.get, files.export (at most 10 MB), changes.list and getStartPageToken, about.get, the permission
resource, and the usage limits (403 with reasons rateLimitExceeded and userRateLimitExceeded).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, ClassVar
from urllib.parse import quote

from pydantic import Field, StringConstraints

from services.common.errors import SealcombError, invalid
from services.ingest.egress.client import Answer, Egress
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import Row, cut, read_row, web_address
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    PRINCIPALS_MAX,
    Batch,
    Change,
    Credential,
    CursorExpired,
    Fetched,
    Item,
    ItemGone,
    ItemTooLarge,
    ItemUnfit,
    OAuthProfile,
    Principals,
    Removed,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
    SourceSettings,
    Unread,
)
from services.ingest.sources.cursors import CursorState, read_cursor, write_cursor

_GOOGLE = "application/vnd.google-apps."
_FOLDER = _GOOGLE + "folder"
_OFFICE = "application/vnd.openxmlformats-officedocument."
_EXPORTS = {
    _GOOGLE + "document": _OFFICE + "wordprocessingml.document",
    _GOOGLE + "spreadsheet": _OFFICE + "spreadsheetml.sheet",
    _GOOGLE + "presentation": _OFFICE + "presentationml.presentation",
}
_FIELDS = (
    "id,name,mimeType,md5Checksum,modifiedTime,size,webViewLink,trashed,parents,driveId,"
    "permissions(type,emailAddress,domain,deleted)"
)
_CHANGES = f"nextPageToken,newStartPageToken,changes(changeType,removed,fileId,file({_FIELDS}))"
_FOLDERS_MAX = 5_000
_LIMIT_REASONS = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "sharingRateLimitExceeded"})

Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class GoogleDriveSettings(SourceSettings):
    """What of a Drive to take in."""

    # Folders with everything under them; empty: all files that the user can see.
    folders: tuple[Id, ...] = Field(default=(), max_length=100)
    # A shared drive; empty: the user's own.
    drive: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,128}$")] = ""


class _State(CursorState):
    """`changes` is the token that the next listing of changes starts with; `known` are the folders inside."""

    full: bool = True
    changes: str = ""
    page: str = ""
    waiting: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class GoogleDriveType:
    """Google Drive."""

    kind: ClassVar[str] = "google_drive"
    title: ClassVar[str] = "Google Drive"
    token_form: ClassVar[str] = "an OAuth access token"  # noqa: S105  # a description
    settings_model: ClassVar[type[SourceSettings]] = GoogleDriveSettings

    def __init__(
        self,
        api_url: str = "https://www.googleapis.com",
        *,
        timing: Timing | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._timing = timing
        self._limits = limits
        self.oauth: OAuthProfile | None = OAuthProfile(
            authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
            token_url="https://oauth2.googleapis.com/token",  # noqa: S106  # an address
            # Google's device flow does not grant the scope below, so there is no device_url.
            revoke_url="https://oauth2.googleapis.com/revoke",
            scopes=("https://www.googleapis.com/auth/drive.readonly",),
            issuer="https://accounts.google.com",
            revocation="rfc7009",
            refresh="reusable",
            authorize_parameters={"access_type": "offline", "prompt": "consent"},
        )

    def hosts(self, settings: GoogleDriveSettings) -> tuple[str, ...]:
        """The API's host."""
        return (parse_url(self._api_url).netloc,)

    def open(
        self, settings: GoogleDriveSettings, credential: Credential | None, egress: Egress
    ) -> GoogleDriveSource:
        """A source for one job."""
        if credential is None:
            raise invalid("credential", "Google Drive needs an access token")
        calls = Calls(
            egress,
            name=self.title,
            hosts=self.hosts(settings),
            credential=credential,
            explain=_explain,
            timing=self._timing,
            limits=self._limits,
        )
        return GoogleDriveSource(f"{self._api_url}/drive/v3", settings, calls)


class GoogleDriveSource:
    """See Source. A file's version is its checksum, a Google document's the time of its change."""

    kind = GoogleDriveType.kind

    def __init__(self, api_url: str, settings: GoogleDriveSettings, calls: Calls) -> None:
        self._api_url = api_url
        self._settings = settings
        self._calls = calls
        self._me: str | None = None

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Everything page by page, then only changes."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        if state.full:
            async for batch in self._everything(state):
                yield batch
        else:
            async for batch in self._changed(state):
                yield batch

    async def fetch(self, item: Item) -> Fetched:
        """A file's content, or its export."""
        url = f"{self._api_url}/files/{quote(item.id, safe='')}"
        row = read_row(await self._calls.send(url, parameters=self._drives({"fields": _FIELDS})))
        if row.flag("trashed"):
            raise ItemGone("the file is in the trash")
        kind = row.text("mimeType")
        export = _EXPORTS.get(kind)
        if export is None and kind.startswith(_GOOGLE):
            raise ItemUnfit("this kind of file has no content that could be searched")
        if export is not None:
            answer = await self._calls.download(f"{url}/export", parameters={"mimeType": export})
        else:
            answer = await self._calls.download(url, parameters=self._drives({"alt": "media"}))
        return Fetched(answer.content, export or kind, {"modified": row.text_or("modifiedTime")})

    async def _everything(self, state: _State) -> AsyncIterator[Batch]:
        if not state.changes:
            # Before the first page, so that nothing that changes meanwhile is missed.
            start = read_row(
                await self._calls.send(
                    f"{self._api_url}/changes/startPageToken", parameters=self._drives({}, single=True)
                )
            )
            folders = self._settings.folders
            state = _State(changes=start.text("startPageToken"), waiting=folders or ("",), known=folders)
        while state.waiting:
            folder = state.waiting[0]
            try:
                page = read_row(
                    await self._calls.send(
                        f"{self._api_url}/files", parameters=self._query(folder, state.page)
                    )
                )
            except (ItemGone, SourceDenied) as error:
                state = state.model_copy(update={"page": "", "waiting": state.waiting[1:]})
                yield Batch((Unread(folder, folder, error),), write_cursor(self._settings, state))
                continue
            changes: list[Change] = []
            found: list[str] = []
            for row in page.rows("files"):
                if row.text("mimeType") != _FOLDER:
                    changes += await self._item(row)
                elif self._settings.folders and row.text("id") not in state.known:
                    found.append(row.text("id"))
            if len(state.known) + len(found) > _FOLDERS_MAX:
                raise SourceAnswerInvalid("there are more folders than the limit; name fewer of them")
            page_token = page.text_or("nextPageToken")
            waiting = state.waiting if page_token else state.waiting[1:]
            state = state.model_copy(
                update={"page": page_token, "waiting": (*waiting, *found), "known": (*state.known, *found)}
            )
            yield Batch(tuple(changes), write_cursor(self._settings, state))
        done = _State(full=False, changes=state.changes, known=state.known)
        yield Batch((), write_cursor(self._settings, done), complete=True, full=True)

    async def _changed(self, state: _State) -> AsyncIterator[Batch]:
        while True:
            parameters = self._drives(
                {
                    "pageToken": state.changes,
                    "pageSize": "200",
                    "includeRemoved": "true",
                    "fields": _CHANGES,
                },
                single=True,
            )
            try:
                page = read_row(await self._calls.send(f"{self._api_url}/changes", parameters=parameters))
            except (ItemGone, SourceAnswerInvalid) as error:
                raise CursorExpired("the list of changes has ended; list everything again") from error
            changes: list[Change] = []
            for row in page.rows("changes"):
                changes += await self._change(row, state)
            following = page.text_or("nextPageToken")
            state = state.model_copy(update={"changes": following or page.text("newStartPageToken")})
            yield Batch(tuple(changes), write_cursor(self._settings, state), complete=not following)
            if not following:
                return

    async def _change(self, row: Row, state: _State) -> list[Change]:
        if row.text_or("changeType", "file") != "file":
            return []
        file_id = row.text("fileId")
        file = row.row_or_none("file")
        gone = row.flag("removed") or file is None or file.flag("trashed")
        folder = file is not None and file.text_or("mimeType") == _FOLDER
        if self._settings.folders:
            inside = file is not None and bool(set(file.texts("parents")) & set(state.known))
            # A folder that came, went or moved brings or takes all that is under it.
            if (file_id in state.known) if gone else folder and inside != (file_id in state.known):
                raise CursorExpired("folders have moved; list everything again")
            gone = gone or not inside
        if gone or file is None:
            return [Removed(file_id)]
        return [] if folder else await self._item(file)

    async def _item(self, row: Row) -> list[Change]:
        kind = row.text("mimeType")
        if kind.startswith(_GOOGLE) and kind not in _EXPORTS:
            return []
        item = Item(
            id=row.text("id"),
            name=cut(row.text_or("name")),
            version=row.text_or("md5Checksum") or row.text("modifiedTime"),
            url=web_address(row.text_or("webViewLink")),
            content_type=_EXPORTS.get(kind, kind),
            size_bytes=row.number_or("size"),
            principals=await self._principals(row),
        )
        return [item]

    async def _principals(self, row: Row) -> Principals:
        permissions = row.rows_or_none("permissions")
        drive = row.text_or("driveId")
        # Only who may share a file is told with whom it is shared.
        if permissions is None:
            return (f"google:drive:{drive}", await self._whoami()) if drive else (await self._whoami(),)
        principals: list[str] = []
        for permission in permissions:
            kind = permission.text_or("type")
            if permission.flag("deleted"):
                continue
            if kind == "anyone":
                return None
            if kind == "domain" and permission.text_or("domain"):
                principals.append(f"google:domain:{permission.text('domain').lower()}")
            if kind in ("user", "group") and permission.text_or("emailAddress"):
                principals.append(f"google:{kind}:{permission.text('emailAddress').lower()}")
        return tuple(sorted(set(principals))[:PRINCIPALS_MAX])

    async def _whoami(self) -> str:
        if self._me is None:
            about = await self._calls.send(
                f"{self._api_url}/about", parameters={"fields": "user(emailAddress)"}
            )
            self._me = "google:user:" + read_row(about).row("user").text("emailAddress").lower()
        return self._me

    def _query(self, folder: str, page_token: str) -> dict[str, str]:
        query = {
            "q": f"'{folder}' in parents and trashed = false" if folder else "trashed = false",
            "fields": f"nextPageToken,files({_FIELDS})",
            "pageSize": "100",
        }
        if page_token:
            query["pageToken"] = page_token
        if self._settings.drive:
            query["corpora"] = "drive"
        return self._drives(query, single=True)

    def _drives(self, parameters: dict[str, str], *, single: bool = False) -> dict[str, str]:
        parameters["supportsAllDrives"] = "true"
        if single and self._settings.drive:
            parameters |= {"driveId": self._settings.drive, "includeItemsFromAllDrives": "true"}
        return parameters


def _explain(answer: Answer) -> SealcombError | None:
    """403 has many meanings; its body says which."""
    if answer.status != 403:
        return None
    try:
        errors = json.loads(answer.content)["error"]["errors"]
        reasons = {str(error["reason"]) for error in errors}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if reasons & _LIMIT_REASONS:
        return SourceLimited("Google Drive asks to come back later")
    if "exportSizeLimitExceeded" in reasons:
        return ItemTooLarge("the file is larger than Google Drive exports")
    return ItemUnfit("the file may not be downloaded") if "cannotDownloadFile" in reasons else None
