"""What a crawler needs of web pages: their links, what they say to crawlers, and the addresses of sitemaps.

Links are found by bounded patterns, not by a parser of HTML: the time is linear in the length, whatever the
page holds, and a link too many costs one request. The text of pages is extracted elsewhere, in the sandbox.
"""

from __future__ import annotations

import html
import re
import zlib
from dataclasses import dataclass

from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.target import join_url, parse_url
from services.ingest.sources.contract import SourceAnswerInvalid
from services.ingest.sources.markup import local_name, read_xml, text_of

_PAGE_CHARS_MAX = 2 * 1024 * 1024
_LINKS_MAX = 2_000
_SITEMAP_BYTES_MAX = 50 * 1024 * 1024  # the limit of sitemaps.org
_TAG = re.compile(r"<(a|area|base|meta|link)\s([^<>]{1,4096})>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([a-zA-Z-]{1,32})\s{0,8}=\s{0,8}("[^"]*"|'[^']*'|[^\s"'>]+)""")


@dataclass(frozen=True, slots=True)
class Page:
    """`links` are absolute https addresses without fragments."""

    links: tuple[str, ...]
    index: bool


def read_page(url: str, content: bytes, robots_header: str) -> Page:
    """A page's links, unless it asks that they not be followed, and whether it may be indexed."""
    words = robots_header.lower()
    hrefs: list[str] = []
    base = url
    for found in _TAG.finditer(content[:_PAGE_CHARS_MAX].decode("utf-8", "replace")):
        tag, attributes = found[1].lower(), _attributes(found[2])
        if tag == "meta" and attributes.get("name", "").lower() in ("robots", "sealcomb"):
            words += "," + attributes.get("content", "").lower()
        elif tag == "base" and attributes.get("href"):
            base = _joined(url, attributes["href"]) or base
        elif tag in ("a", "area") and "nofollow" not in attributes.get("rel", "").lower():
            hrefs.append(attributes.get("href", ""))
    directives = {word.strip() for word in words.split(",")}
    follow = not directives & {"nofollow", "none"}
    links = dict.fromkeys(filter(None, (_joined(base, href) for href in hrefs if href))) if follow else {}
    return Page(tuple(links)[:_LINKS_MAX], index=not directives & {"noindex", "none"})


def read_sitemap(content: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pages, and further sitemaps, of a sitemap (sitemaps.org), which may be a gzip file."""
    if content[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            content = unpacker.decompress(content, _SITEMAP_BYTES_MAX + 1)
        except zlib.error:
            raise SourceAnswerInvalid("the sitemap's compression is broken") from None
    if len(content) > _SITEMAP_BYTES_MAX:
        raise SourceAnswerInvalid("the sitemap is larger than the limit")
    root = read_xml(content)
    locations = tuple(text_of(entry, "{*}loc") for entry in root)[:50_000]
    return ((), locations) if local_name(root) == "sitemapindex" else (locations, ())


def normal_url(url: str) -> str:
    """The one spelling of a page's address; nothing when requests do not go to such addresses."""
    try:
        return parse_url(url.partition("#")[0]).url
    except EgressRefused:
        return ""


def _joined(base: str, href: str) -> str:
    try:
        return normal_url(join_url(base, html.unescape(href).strip().partition("#")[0]))
    except EgressRefused:
        return ""


def _attributes(text: str) -> dict[str, str]:
    return {name.lower(): value.strip("\"'") for name, value in _ATTRIBUTE.findall(text)}
