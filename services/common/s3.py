"""Sealed objects in a bucket of S3, or of whatever speaks it.

A put is whole or absent: one request, or a multipart upload that is completed at its end. `new` makes
it conditional at the server (If-None-Match), so that of two writers one is refused and neither overwrites. An
object that changes while it is read is a failure, never a mixture. Credentials come from a file or are found
as AWS's SDK finds them; this module never sees plaintext.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import boto3
import botocore.session
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from prometheus_client import Counter

from services.common.errors import AlreadyExists, NotFound, SealcombError, Unavailable
from services.common.objectkeys import check_key, check_prefix, is_key

_log = structlog.get_logger("objects")
_failures = Counter("sealcomb_object_failures_total", "Failed calls of the object store", ["reason"])
_UPLOAD_PART_BYTES = 8 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_READS_MAX = 4
_MARKER = "installation"
_DENIED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"})
_MISSING = frozenset({"NoSuchKey", "404"})
_OPTIONS = frozenset({"endpoint", "region", "ca_file", "credentials_file", "insecure"})
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ObjectsRefused(ValueError):
    """The place of the objects is not one that may be used."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A place in S3: `s3://<bucket>/<prefix>?endpoint=...&region=...&ca_file=...&credentials_file=...`."""

    name: str
    # Empty, or ends in a slash.
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    ca_file: str = ""
    credentials_file: str = ""

    @classmethod
    def from_url(cls, url: str) -> Bucket:
        """What a URL says. Raises ObjectsRefused for one that would send credentials in clear."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme != "s3" or not parts.hostname or parts.fragment or parts.username:
            raise ObjectsRefused("the bucket must be s3://<bucket>/<prefix>?endpoint=https://...")
        if unknown := options.keys() - _OPTIONS:
            raise ObjectsRefused(f"the bucket's URL has an unknown option: {min(unknown)}")
        insecure = options.pop("insecure", "") == "1"
        endpoint = urlsplit(options.get("endpoint", "https:"))
        if endpoint.scheme != "https" and endpoint.hostname not in _LOOPBACK and not insecure:
            raise ObjectsRefused("the bucket's endpoint must be https where it leaves this machine")
        prefix = parts.path.strip("/")
        return cls(parts.hostname, f"{prefix}/" if prefix else "", **options)


class S3Store:
    """Objects below one prefix of a bucket."""

    def __init__(self, bucket: Bucket, *, timeout_s: float = 20.0) -> None:
        self._bucket = bucket
        session = botocore.session.Session()
        if bucket.credentials_file:
            if not Path(bucket.credentials_file).is_file():
                raise ObjectsRefused("the bucket's credentials_file is not there")
            session.set_config_variable("credentials_file", bucket.credentials_file)
        config = Config(
            connect_timeout=5,
            read_timeout=timeout_s,
            retries={"total_max_attempts": 3, "mode": "standard"},
            max_pool_connections=16,
            proxies={},
            s3={"addressing_style": "path"} if bucket.endpoint else {},
        )
        self._client = boto3.Session(botocore_session=session).client(
            "s3",
            endpoint_url=bucket.endpoint or None,
            region_name=bucket.region,
            verify=bucket.ca_file or True,
            config=config,
        )

    def claim(self, owner: str) -> None:
        """Marks the place as its owner's; ObjectsRefused if it is marked as another's."""
        try:
            # Read first: servers say less of what is missing to whoever writes.
            marked = self.get(_MARKER)
        except NotFound:
            with contextlib.suppress(AlreadyExists):
                self.put(_MARKER, [owner.encode()], new=True)
            marked = self.get(_MARKER)
        if marked != owner.encode():
            raise ObjectsRefused(
                "the bucket's prefix is another database's; give each database one of its own"
            )

    def put(self, key: str, parts: Iterable[bytes], *, new: bool = False) -> None:
        """Stores the parts as one object, durably; with `new` AlreadyExists where there is one."""
        condition = {"IfNoneMatch": "*"} if new else {}
        blocks = _blocks(parts)
        first = next(blocks, b"")
        second = next(blocks, None)
        if second is None:
            self._call("put_object", key, Body=first, **condition)
            return
        upload = self._call("create_multipart_upload", key)["UploadId"]
        try:
            done = []
            for number, block in enumerate(_chain(first, second, blocks), 1):
                answer = self._call("upload_part", key, UploadId=upload, PartNumber=number, Body=block)
                done.append({"ETag": answer["ETag"], "PartNumber": number})
            whole = {"Parts": done}
            self._call("complete_multipart_upload", key, UploadId=upload, MultipartUpload=whole, **condition)
        except BaseException:
            # Also when the parts themselves fail half way, such as at a cancelled upload.
            with contextlib.suppress(SealcombError):
                self._call("abort_multipart_upload", key, UploadId=upload)
            raise

    def get(self, key: str) -> bytes:
        """The object. Raises NotFound."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in parts. Raises NotFound at the first; a broken connection is taken up again."""
        answer = self._call("get_object", key)
        tag, size = answer["ETag"], int(answer["ContentLength"])
        offset, reads = 0, 1
        while True:
            try:
                for part in answer["Body"].iter_chunks(_READ_BYTES):
                    offset += len(part)
                    yield part
            except (HTTPClientError, BotoCoreError, OSError) as error:
                _log.debug("reading of an object broke off", exception_type=type(error).__name__)
            if offset >= size:
                return
            if reads == _READS_MAX:
                raise _failed("STORAGE_FAILED")
            reads += 1
            answer = self._call("get_object", key, Range=f"bytes={offset}-", IfMatch=tag)

    def delete(self, key: str) -> None:
        """Removes the object; no error if there is none."""
        with contextlib.suppress(NotFound):
            self._call("delete_object", key)

    def list(self, prefix: str) -> list[str]:
        """The keys below a prefix that ends in a slash, in order; all keys for an empty one."""
        check_prefix(prefix)
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            start = self._bucket.prefix + prefix
            answer = self._raw("list_objects_v2", Bucket=self._bucket.name, Prefix=start, **more)
            found += [item["Key"].removeprefix(self._bucket.prefix) for item in answer.get("Contents", ())]
            if not answer.get("IsTruncated"):
                return sorted(key for key in found if key != _MARKER and is_key(key))
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def _call(self, operation: str, key: str, **values: Any) -> Any:
        check_key(key)
        return self._raw(operation, Bucket=self._bucket.name, Key=self._bucket.prefix + key, **values)

    def _raw(self, operation: str, **values: Any) -> Any:
        try:
            return getattr(self._client, operation)(**values)
        except ClientError as error:
            raise _refused(operation, error) from error
        except (HTTPClientError, BotoCoreError) as error:
            _log.warning("object store does not answer", exception_type=type(error).__name__)
            raise _failed("STORAGE_FAILED") from error


def _refused(operation: str, error: ClientError) -> SealcombError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return NotFound("there is no such object", reason="OBJECT_NOT_FOUND")
    if code == "PreconditionFailed":
        if operation == "get_object":
            return _failed("OBJECT_CHANGED")
        return AlreadyExists("there is such an object already", reason="OBJECT_EXISTS")
    if code == "NoSuchBucket":
        _log.error("the bucket is missing; make it, or correct SEALCOMB_OBJECTS_URL")
        return _failed("BUCKET_MISSING")
    if code in _DENIED:
        _log.error("the object store refuses these credentials", method=operation, reason=code)
        return _failed("STORAGE_DENIED")
    _log.warning("object store failed", method=operation, reason=code)
    return _failed("STORAGE_FAILED")


def _failed(reason: str) -> Unavailable:
    _failures.labels(reason).inc()
    return Unavailable("the storage failed; try again", reason=reason, retry_after_s=1.0)


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of one size, the last one smaller."""
    gathered = bytearray()
    for part in parts:
        gathered += part
        while len(gathered) >= _UPLOAD_PART_BYTES:
            yield bytes(gathered[:_UPLOAD_PART_BYTES])
            del gathered[:_UPLOAD_PART_BYTES]
    if gathered:
        yield bytes(gathered)


def _chain(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest
