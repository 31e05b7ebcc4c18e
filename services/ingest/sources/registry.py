"""The kinds of sources that this installation offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.confluence import ConfluenceType
from services.ingest.sources.contract import SourceType
from services.ingest.sources.github import GitHubType
from services.ingest.sources.google_drive import GoogleDriveType
from services.ingest.sources.notion import NotionType
from services.ingest.sources.s3 import S3Type
from services.ingest.sources.slack import SlackType
from services.ingest.sources.web import WebType
from services.ingest.sources.webdav import WebDavType

# Kinds whose API's address the operator may change, as for a GitHub Enterprise server.
_ADDRESSED: Mapping[str, type[Any]] = {
    kind.kind: kind for kind in (ConfluenceType, GitHubType, GoogleDriveType, NotionType, SlackType)
}


def source_types(
    api_urls: Mapping[str, str] | None = None,
    *,
    timing: Timing | None = None,
    limits: RetryLimits | None = None,
) -> dict[str, SourceType[Any]]:
    """Every kind by its name. `api_urls` are the operator's, by kind. ValueError for a kind that has none."""
    urls = dict(api_urls or {})
    types: list[SourceType[Any]] = [
        kind(urls.pop(name), timing=timing, limits=limits)
        if name in urls
        else kind(timing=timing, limits=limits)
        for name, kind in _ADDRESSED.items()
    ]
    if urls:
        raise ValueError(f"no source has an address that can be set: {', '.join(sorted(urls))}")
    types += [kind(timing=timing, limits=limits) for kind in (S3Type, WebDavType, WebType)]
    return {kind.kind: kind for kind in sorted(types, key=lambda kind: kind.kind)}
