"""S3: the objects of a bucket, at AWS or any server with its interface.

From the Amazon S3 API reference: ListObjectsV2 (with encoding-type url), GetObject, error responses and
Signature Version 4. S3 tells no changes, so every listing is a full one; an ETag is the version.
"""

from __future__ import annotations

import datetime
import mimetypes
from collections.abc import AsyncIterator, Mapping
from typing import ClassVar
from urllib.parse import quote, unquote_plus

from pydantic import Field, field_validator

from services.common.errors import SealcombError, invalid
from services.ingest.egress.client import Answer, Egress
from services.ingest.egress.target import Target, parse_url
from services.ingest.sources.answers import cut
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    ID_CHARS_MAX,
    Batch,
    Change,
    Credential,
    CredentialRefused,
    CursorExpired,
    Fetched,
    Item,
    ItemUnfit,
    OAuthProfile,
    SourceAnswerInvalid,
    SourceLimited,
    SourceSettings,
    SourceUnavailable,
    Unread,
)
from services.ingest.sources.cursors import CursorState, read_cursor, write_cursor
from services.ingest.sources.markup import local_name, read_xml, text_of
from services.ingest.sources.settings import checked_url
from services.ingest.sources.sigv4 import SigningKey, sign

_FROZEN = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_REFUSED = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)


class S3Settings(SourceSettings):
    """What of a bucket to take in."""

    # The service's address as in https://s3.eu-central-1.amazonaws.com; buckets are in the path.
    endpoint: str = Field(max_length=2048)
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,64}$")
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: str = Field(default="", max_length=1024)

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        return checked_url(value)


class _State(CursorState):
    """S3's own token of the next page."""

    page: str = ""


class S3Type:
    """S3."""

    kind: ClassVar[str] = "s3"
    title: ClassVar[str] = "S3"
    token_form: ClassVar[str] = "ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]"  # noqa: S105  # a form
    settings_model: ClassVar[type[SourceSettings]] = S3Settings
    oauth: OAuthProfile | None = None

    def __init__(self, *, timing: Timing | None = None, limits: RetryLimits | None = None) -> None:
        self._timing = timing or Timing()
        self._limits = limits

    def hosts(self, settings: S3Settings) -> tuple[str, ...]:
        """The endpoint's host."""
        return (parse_url(settings.endpoint).netloc,)

    def open(self, settings: S3Settings, credential: Credential | None, egress: Egress) -> S3Source:
        """A source for one job."""
        if credential is None:
            raise invalid("credential", "S3 needs an access key")
        target = parse_url(settings.endpoint)

        def authorize(
            method: str, url: str, headers: Mapping[str, str], content: bytes, token: str
        ) -> tuple[str, Mapping[str, str]]:
            now = datetime.datetime.fromtimestamp(self._timing.clock.now_s(), datetime.UTC)
            return sign(
                SigningKey.parse(token),
                region=settings.region,
                when=now,
                method=method,
                url=url,
                host=target.netloc,
                headers=headers,
                content=content,
            )

        calls = Calls(
            egress,
            name=self.title,
            hosts=self.hosts(settings),
            credential=credential,
            authorize=authorize,
            explain=_explain,
            timing=self._timing,
            limits=self._limits,
        )
        return S3Source(target, settings, calls)


class S3Source:
    """See Source. An item's id is its key."""

    kind = S3Type.kind

    def __init__(self, target: Target, settings: S3Settings, calls: Calls) -> None:
        self._url = f"{target.url.rstrip('/')}/{settings.bucket}"
        self._settings = settings
        self._calls = calls

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Every object, each time."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        while True:
            parameters = {"list-type": "2", "encoding-type": "url"}
            if self._settings.prefix:
                parameters["prefix"] = self._settings.prefix
            if state.page:
                parameters["continuation-token"] = state.page
            try:
                answer = await self._calls.send(self._url, parameters=parameters)
            except SourceAnswerInvalid as error:
                if state.page:
                    raise CursorExpired("the listing has ended; list everything again") from error
                raise
            root = read_xml(answer.content)
            # Any other document would be a bucket without objects, so that all of them seemed gone.
            if local_name(root) != "ListBucketResult":
                raise SourceAnswerInvalid("the source's answer is no listing of a bucket")
            changes: list[Change] = []
            for entry in root.findall("{*}Contents"):
                key = unquote_plus(text_of(entry, "{*}Key"))
                if not key or key.endswith("/"):
                    continue
                size = text_of(entry, "{*}Size")
                if len(key) > ID_CHARS_MAX or text_of(entry, "{*}StorageClass") in _FROZEN:
                    changes.append(Unread(key[:ID_CHARS_MAX], cut(key), ItemUnfit("the object is archived")))
                    continue
                changes.append(
                    Item(
                        id=key,
                        name=cut(key),
                        version=text_of(entry, "{*}ETag") or text_of(entry, "{*}LastModified"),
                        url=self._object_url(key),
                        content_type=mimetypes.guess_type(key)[0] or "",
                        size_bytes=int(size) if size.isdecimal() and len(size) < 19 else 0,
                    )
                )
            following = text_of(root, "{*}NextContinuationToken")
            more = text_of(root, "{*}IsTruncated") == "true"
            if more and not following:
                raise SourceAnswerInvalid("the source's listing breaks off")
            state = _State(page=following if more else "")
            yield Batch(tuple(changes), write_cursor(self._settings, state), complete=not more, full=not more)
            if not more:
                return

    async def fetch(self, item: Item) -> Fetched:
        """An object's bytes."""
        answer = await self._calls.download(self._object_url(item.id))
        kind = answer.headers.get("content-type", "")
        if kind in ("", "binary/octet-stream", "application/octet-stream"):
            kind = item.content_type
        return Fetched(answer.content, kind, {"key": item.id})

    def _object_url(self, key: str) -> str:
        # Dots stay as they are: S3 resolves no dot segments, and signs what is sent.
        return f"{self._url}/" + quote(key, safe="/-._~")


def _explain(answer: Answer) -> SealcombError | None:
    """S3's error codes are in the body: a 403 may be a bad key, and a 503 a limit."""
    if answer.status not in (400, 403, 503):
        return None
    try:
        code = text_of(read_xml(answer.content), "{*}Code") or text_of(read_xml(answer.content), "Code")
    except SourceAnswerInvalid:
        return None
    if code in _REFUSED:
        return CredentialRefused("S3 does not accept the access key; send another")
    if code == "SlowDown":
        return SourceLimited("S3 asks to come back later")
    if code == "RequestTimeTooSkewed":
        return SourceUnavailable("this machine's clock is not the one of S3")
    return ItemUnfit("the object is archived") if code == "InvalidObjectState" else None
