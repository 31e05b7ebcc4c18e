"""AWS Signature Version 4, the part that reading from S3 needs: a signature in the Authorization header.

From AWS's documentation "Authenticating Requests (AWS Signature Version 4)" for Amazon S3, whose worked
examples are this module's known answers. Paths are signed as they are sent, encoded once.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlsplit

from services.ingest.sources.contract import CredentialRefused

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNRESERVED = "-._~"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An access key. `session_token` is of temporary ones."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)

    @classmethod
    def parse(cls, token: str) -> SigningKey:
        """From `ACCESS_KEY:SECRET_KEY` or `ACCESS_KEY:SECRET_KEY:SESSION_TOKEN`."""
        access_key, _, rest = token.partition(":")
        secret_key, _, session_token = rest.partition(":")
        whole = access_key + secret_key + session_token
        if not access_key or not secret_key or not whole.isascii() or not whole.isprintable() or " " in whole:
            raise CredentialRefused("the credential is written ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]")
        return cls(access_key, secret_key, session_token)


def sign(
    key: SigningKey,
    *,
    region: str,
    when: datetime.datetime,
    method: str,
    url: str,
    host: str,
    headers: Mapping[str, str],
    content: bytes,
) -> tuple[str, Mapping[str, str]]:
    """The Authorization header, and the headers that must go with it."""
    stamp = when.strftime("%Y%m%dT%H%M%SZ")
    body_hash = hashlib.sha256(content).hexdigest()
    extra = {"x-amz-date": stamp, "x-amz-content-sha256": body_hash}
    if key.session_token:
        extra["x-amz-security-token"] = key.session_token
    signed = {name.lower(): value.strip() for name, value in {**headers, **extra}.items()} | {"host": host}
    names = ";".join(sorted(signed))
    parts = urlsplit(url)
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            canonical_query(parts.query),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            body_hash,
        )
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    signature = hmac.digest(_signing_key(key.secret_key, stamp[:8], region), text.encode(), "sha256").hex()
    authorization = (
        f"{_ALGORITHM} Credential={key.access_key}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return authorization, extra


def canonical_query(query: str) -> str:
    """Parameters encoded by AWS's rules and sorted."""
    pairs = [
        (quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED))
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
