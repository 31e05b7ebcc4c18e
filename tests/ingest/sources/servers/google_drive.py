"""Google Drive's API v3, in the shapes of its reference."""

from __future__ import annotations

import re
from typing import Any

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.google_drive import GoogleDriveType
from tests.ingest.sources.servers.https import Reply, Request, json_reply
from tests.ingest.sources.servers.world import World, hash_of, page_of

FOLDER = "application/vnd.google-apps.folder"


class GoogleDriveWorld(World):
    """A drive whose root has a folder. Documents named `*.gdoc` are Google's own and only exported."""

    kind = "google_drive"
    host = "drive.google.test"
    incremental = True

    def start(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.changes: list[dict[str, Any]] = []
        self.permissions: dict[str, list[dict[str, Any]] | None] = {}
        self.times = 0
        self.add_folder("folder-1", "root")

    def add_folder(self, folder_id: str, parent: str) -> None:
        self.files[folder_id] = {"id": folder_id, "name": folder_id, "mimeType": FOLDER, "parents": [parent]}

    def id_of(self, name: str) -> str:
        return "id-" + hash_of(name.encode())[:12]

    def put(self, name: str, content: bytes) -> None:
        super().put(name, content)
        self.times += 1
        google = name.endswith(".gdoc")
        row: dict[str, Any] = {
            "id": self.id_of(name),
            "name": name,
            "mimeType": "application/vnd.google-apps.document" if google else "text/plain",
            "modifiedTime": f"2026-05-01T00:00:{self.times:02}.000Z",
            "webViewLink": f"https://docs.google.test/{self.id_of(name)}",
            "parents": ["folder-1"],
        }
        if not google:
            row |= {"md5Checksum": hash_of(content), "size": str(len(content))}
        self.files[row["id"]] = row
        self.changes.append({"changeType": "file", "removed": False, "fileId": row["id"]})

    def remove(self, name: str) -> None:
        super().remove(name)
        del self.files[self.id_of(name)]
        self.changes.append({"changeType": "file", "removed": True, "fileId": self.id_of(name)})

    def source_type(self, timing: Timing, limits: RetryLimits) -> GoogleDriveType:
        return GoogleDriveType(self.base, timing=timing, limits=limits)

    def settings(self) -> dict[str, object]:
        return {"folders": ["folder-1"]}

    def other_settings(self) -> dict[str, object]:
        return {"folders": ["folder-2"]}

    def answer(self, request: Request) -> Reply | None:
        path = request.path.removeprefix("/drive/v3/")
        if path == "about":
            return json_reply({"user": {"emailAddress": "Me@Example.com"}})
        if path == "changes/startPageToken":
            return json_reply({"startPageToken": f"c{len(self.changes)}"})
        if path == "changes":
            return self._changes(request)
        if path == "files":
            return self._files(request)
        found = re.fullmatch(r"files/([^/]+)(/export)?", path)
        row = self.files.get(found[1]) if found else None
        if found is None or row is None:
            return json_reply({"error": {"code": 404, "errors": [{"reason": "notFound"}]}}, 404)
        if found[2]:
            kind = request.query["mimeType"]
            return Reply(200, {"content-type": kind}, self.documents[row["name"]])
        if request.query.get("alt") == "media":
            return Reply(200, {"content-type": row["mimeType"]}, self.documents[row["name"]])
        return json_reply(self._shown(row))

    def _files(self, request: Request) -> Reply:
        found = re.match(r"'([^']+)' in parents", request.query["q"])
        rows = [row for row in self.files.values() if found is None or found[1] in row["parents"]]
        page, following = page_of(rows, request.query.get("pageToken", ""))
        shown = [self._shown(row) for row in page]
        return json_reply({"files": shown} | ({"nextPageToken": following} if following else {}))

    def _changes(self, request: Request) -> Reply:
        token = request.query["pageToken"]
        if not re.fullmatch(r"c\d+", token):
            return json_reply({"error": {"code": 400, "errors": [{"reason": "invalid"}]}}, 400)
        start = int(token[1:])
        rows = self.changes[start : start + 2]
        shown = [
            change
            | ({"file": self._shown(self.files[change["fileId"]])} if change["fileId"] in self.files else {})
            for change in rows
        ]
        if start + 2 < len(self.changes):
            return json_reply({"changes": shown, "nextPageToken": f"c{start + 2}"})
        return json_reply({"changes": shown, "newStartPageToken": f"c{len(self.changes)}"})

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        default = [{"type": "user", "emailAddress": "Ann@Example.com"}]
        permissions = self.permissions.get(row["name"], default)
        return row | ({} if permissions is None else {"permissions": permissions})
