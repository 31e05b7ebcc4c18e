"""A WebDAV server, in the shapes of RFC 4918 and of Nextcloud: one folder below the root."""

from __future__ import annotations

import base64
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.webdav import WebDavType
from tests.ingest.sources.servers.https import Reply, Request
from tests.ingest.sources.servers.world import World, hash_of

ROOT = "/remote.php/dav/files/ann/"


class WebDavWorld(World):
    """Documents are in the root, and those with a slash in folders."""

    kind = "webdav"
    host = "cloud.test"
    token = "ann:password-of-the-canary"

    def start(self) -> None:
        self.extra = ""

    def source_type(self, timing: Timing, limits: RetryLimits) -> WebDavType:
        return WebDavType(timing=timing, limits=limits)

    def settings(self) -> dict[str, object]:
        return {"url": f"{self.base}{ROOT}"}

    def other_settings(self) -> dict[str, object]:
        return {"url": f"{self.base}/other/"}

    def authorized(self, request: Request) -> bool:
        return (
            request.headers.get("authorization") == "Basic " + base64.b64encode(self.token.encode()).decode()
        )

    def refusal(self) -> Reply:
        return Reply(401, {"www-authenticate": 'Basic realm="cloud"'})

    def answer(self, request: Request) -> Reply | None:
        path = unquote(request.target)
        if not path.startswith(ROOT):
            return None
        name = path.removeprefix(ROOT)
        if request.method == "PROPFIND":
            return self._listing(name) if request.headers.get("depth") == "1" else Reply(403)
        data = self.documents.get(name)
        return None if data is None else Reply(200, {"content-type": "text/plain"}, data)

    def _listing(self, folder: str) -> Reply | None:
        names = [name for name in self.documents if name.startswith(folder)]
        if folder and not names:
            return None
        below = sorted(
            {
                name[len(folder) :].partition("/")[0] + ("/" if "/" in name[len(folder) :] else "")
                for name in names
            }
        )
        rows = [self._row(folder, None)]
        rows += [
            self._row(folder + name, None if name.endswith("/") else self.documents[folder + name])
            for name in below
        ]
        body = (
            f'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:">{"".join(rows)}{self.extra}</d:multistatus>'
        )
        return Reply(207, {"content-type": "application/xml; charset=utf-8"}, body.encode())

    @staticmethod
    def _row(name: str, data: bytes | None) -> str:
        href = escape(quote(ROOT + name))
        if data is None:
            prop = "<d:resourcetype><d:collection/></d:resourcetype>"
        else:
            prop = (
                f"<d:getetag>&quot;{hash_of(data)}&quot;</d:getetag><d:getcontentlength>{len(data)}"
                "</d:getcontentlength><d:getcontenttype>text/plain</d:getcontenttype><d:resourcetype/>"
            )
        missing = (
            "<d:propstat><d:prop><d:quota/></d:prop><d:status>HTTP/1.1 404 Not Found</d:status></d:propstat>"
        )
        return (
            f"<d:response><d:href>{href}</d:href><d:propstat><d:prop>{prop}</d:prop>"
            f"<d:status>HTTP/1.1 200 OK</d:status></d:propstat>{missing}</d:response>"
        )
