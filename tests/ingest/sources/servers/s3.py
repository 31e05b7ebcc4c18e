"""S3's REST API, in the shapes of its reference. It checks each signature with a second implementation."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.s3 import S3Type
from tests.ingest.sources.servers.https import Reply, Request
from tests.ingest.sources.servers.world import World, hash_of, page_of

_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>\w+)/(?P<day>\d{8})/(?P<region>[\w-]+)/s3/aws4_request,"
    r"SignedHeaders=(?P<names>[\w;-]+),Signature=(?P<signature>[0-9a-f]{64})"
)


class S3World(World):
    """One bucket."""

    kind = "s3"
    host = "s3.test"
    token = "AKIACANARY:secret-of-the-canary"

    def source_type(self, timing: Timing, limits: RetryLimits) -> S3Type:
        return S3Type(timing=timing, limits=limits)

    def settings(self) -> dict[str, object]:
        return {"endpoint": self.base, "bucket": "papers", "region": "eu-central-1"}

    def other_settings(self) -> dict[str, object]:
        return {"endpoint": self.base, "bucket": "others"}

    def authorized(self, request: Request) -> bool:
        found = _HEADER.fullmatch(request.headers.get("authorization", ""))
        if found is None or found["key"] != self.token.partition(":")[0]:
            return False
        key = b"AWS4" + self.token.split(":")[1].encode()
        for part in (found["day"], found["region"], "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        path, _, query = request.target.partition("?")
        lines = [request.method, path, "&".join(sorted(filter(None, query.split("&"))))]
        lines += [f"{name}:{request.headers[name].strip()}" for name in found["names"].split(";")]
        lines += ["", found["names"], hashlib.sha256(request.content).hexdigest()]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        scope = f"{found['day']}/{found['region']}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{digest}"
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() == found["signature"]

    def refusal(self) -> Reply:
        return error("SignatureDoesNotMatch", 403)

    def answer(self, request: Request) -> Reply | None:
        path = unquote(request.target.partition("?")[0])
        if path == "/papers" and request.query.get("list-type") == "2":
            return self._list(request)
        data = self.documents.get(path.removeprefix("/papers/"))
        if data is None:
            return error("NoSuchKey", 404)
        return Reply(200, {"content-type": "binary/octet-stream", "etag": f'"{hash_of(data)}"'}, data)

    def _list(self, request: Request) -> Reply:
        names = sorted(name for name in self.documents if name.startswith(request.query.get("prefix", "")))
        page, following = page_of(names, request.query.get("continuation-token", ""))
        rows = "".join(map(self._row, page))
        more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>papers</Name>'
            f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>{more}{rows}</ListBucketResult>"
        )
        return Reply(200, {"content-type": "application/xml"}, body.encode())

    def _row(self, name: str) -> str:
        data = self.documents[name]
        key = escape(quote(name).replace("%20", "+"))
        return (
            f"<Contents><Key>{key}</Key><ETag>&quot;{hash_of(data)}&quot;</ETag><Size>{len(data)}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )


def error(code: str, status: int) -> Reply:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>m</Message></Error>'
    return Reply(status, {"content-type": "application/xml"}, body.encode())
