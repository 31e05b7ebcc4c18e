"""E3, E14, E16, E18: a crawl keeps to its hosts, to robots.txt and to its limits."""

from __future__ import annotations

import gzip
import time
from collections.abc import AsyncIterator

import pytest

from services.ingest.sources.contract import SourceAnswerInvalid, SourceDenied, SourceUnavailable
from services.ingest.sources.pages import normal_url, read_page, read_sitemap
from services.ingest.sources.robots import read_robots
from tests.ingest.sources.opening import Opened, items, listed, opened, unread
from tests.ingest.sources.servers.https import Reply, Tls
from tests.ingest.sources.servers.web import WebWorld, page


@pytest.fixture
async def web(tls: Tls) -> AsyncIterator[Opened]:
    async with opened(WebWorld(), tls) as found:
        found.fill(["a", "b", "c", "d"])
        yield found


def world_of(found: Opened) -> WebWorld:
    assert isinstance(found.world, WebWorld)
    return found.world


def paths(found: Opened, batches: object) -> set[str]:
    return {item.removeprefix(found.world.base) for item in items(batches)}  # type: ignore[arg-type]


async def test_depth_and_pages_are_limits(web: Opened) -> None:
    assert paths(web, await listed(web.source(settings={"depth": 2}))) == {"/a", "/b"}
    assert paths(web, await listed(web.source(settings={"pages_max": 3}))) == {"/a", "/b", "/c"}


async def test_what_robots_txt_forbids_is_neither_crawled_nor_fetched(web: Opened) -> None:
    found = items(await listed(web.source()))
    world_of(
        web
    ).robots = "User-agent: Sealcomb\nDisallow: /b\nDisallow: /private\n\nUser-agent: *\nDisallow:"
    assert paths(web, await listed(web.source())) == {"/a"}
    with pytest.raises(SourceDenied):
        await web.source().fetch(found[f"{web.world.base}/b"])
    assert all(request.path != "/private/x" for request in web.server.requests)


async def test_without_robots_txt_all_is_crawled_and_with_a_broken_one_nothing(web: Opened) -> None:
    world_of(web).more["/robots.txt"] = Reply(404)
    assert len(items(await listed(web.source()))) == 4
    world_of(web).more["/robots.txt"] = Reply(500)
    with pytest.raises(SourceUnavailable):
        await listed(web.source())


async def test_requests_to_a_site_are_apart_as_asked(web: Opened) -> None:
    await listed(web.source(settings={"delay_s": 2.0}))
    assert web.clock.slept == [2.0] * 5
    web.clock.slept.clear()
    world_of(web).robots = "User-agent: *\nCrawl-delay: 99\nDisallow: /private"
    await listed(web.source())
    assert web.clock.slept == [10.0] * 5


async def test_a_sitemap_names_pages_that_nothing_links_to(web: Opened) -> None:
    world = world_of(web)
    world.put("zz", b"unlinked")
    base = world.base
    index = f"<sitemapindex><sitemap><loc>{base}/s1.xml.gz</loc></sitemap><sitemap><loc>https://elsewhere.test/s</loc></sitemap></sitemapindex>"
    urls = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><url><loc> {base}/zz </loc></url><url><loc>https://elsewhere.test/x</loc></url></urlset>'
    world.more["/sitemap.xml"] = Reply(200, {}, index.encode())
    world.more["/s1.xml.gz"] = Reply(200, {"content-type": "application/gzip"}, gzip.compress(urls.encode()))
    assert "/zz" in paths(web, await listed(web.source(settings={"depth": 0})))
    assert paths(web, await listed(web.source(settings={"depth": 0, "sitemaps": False}))) == set()


async def test_pages_that_ask_not_to_be_indexed_or_followed_are_obeyed(web: Opened) -> None:
    world_of(web).more["/b"] = Reply(
        200, {"content-type": "text/html", "x-robots-tag": "noindex"}, b"<a href=/c>c</a>"
    )
    assert paths(web, await listed(web.source())) == {"/a", "/c", "/d"}
    world_of(web).more["/b"] = page('<meta name="robots" content="nofollow"><a href=/c>c</a>')
    assert paths(web, await listed(web.source())) == {"/a", "/b"}


@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere.test/",
        "http://169.254.169.254/",
        "https://169.254.169.254/latest/",
        "/private/x",
        "/loop",
    ],
)
async def test_a_redirect_off_the_site_or_into_the_forbidden_is_no_page(web: Opened, location: str) -> None:
    world_of(web).more["/b"] = Reply(302, {"location": location})
    world_of(web).more["/loop"] = Reply(302, {"location": "/loop"})
    assert paths(web, await listed(web.source())) == {"/a"}


async def test_a_page_that_fails_for_now_keeps_what_was_indexed_of_others(web: Opened) -> None:
    world_of(web).more["/b"] = Reply(503)
    batches = await listed(web.source())
    assert [problem.id for problem in unread(batches)] == [f"{web.world.base}/b"]
    assert not batches[-1].full


async def test_images_and_unknown_kinds_are_not_taken(web: Opened) -> None:
    world_of(web).more["/b"] = Reply(200, {"content-type": "image/png"}, b"x")
    assert paths(web, await listed(web.source())) == {"/a"}


async def test_a_crawl_of_endless_pages_ends(web: Opened) -> None:
    number = {"at": 0}

    def endless(request: object) -> Reply:
        number["at"] += 1
        return page("".join(f'<a href="/x{number["at"]}-{n}">' for n in range(50)))

    web.server.handler = endless
    batches = await listed(web.source(settings={"pages_max": 20, "delay_s": 0}))
    assert len(items(batches)) == 20


def test_robots_rules_follow_the_standard() -> None:
    robots = read_robots(
        b"\xef\xbb\xbfUser-agent: other # c\nDisallow: /\n\nUser-agent: a\nUser-agent: sealcomb\n"
        b"Disallow: /x\nAllow: /x/y\nDisallow: /*.pdf$\nDisallow: /q?*s=\nCrawl-delay: 2\nSitemap: https://s.test/m.xml\n"
        b"User-agent: *\nDisallow: /all\n",
        "Sealcomb",
    )
    allowed = {"/": True, "/x": False, "/x/y/z": True, "/a.pdf": False, "/a.pdf?x": True, "/q?as=1": False}
    assert {path: robots.allows(path) for path in allowed} == allowed
    assert robots.allows("/all")
    assert (robots.delay_s, robots.sitemaps) == (2.0, ("https://s.test/m.xml",))
    everybody = read_robots(b"User-agent: *\nDisallow: /all\nDisallow:\n", "Sealcomb")
    assert (everybody.allows("/all"), everybody.allows("/x")) == (False, True)


def test_hostile_robots_and_pages_take_time_in_line_with_their_length() -> None:
    pattern = "/" + "*a" * 500
    robots = read_robots(f"User-agent: *\nDisallow: {pattern}$\n".encode() * 200, "Sealcomb")
    started_s = time.monotonic()
    robots.allows("/" + "a" * 4000)
    for hostile in (
        b"<a " * 500_000,
        b"<a href=" * 200_000,
        b"<!--" * 400_000,
        b"<a href='x" * 100_000,
        b"<" * 1_000_000,
    ):
        read_page("https://x.test/", hostile, "")
    assert time.monotonic() - started_s < 5


def test_links_are_made_whole_and_only_https_ones_are_kept() -> None:
    html = (
        b'<base href="/dir/"><a href="p?a=1&amp;b=2#f">x</a><a href="p?a=1&amp;b=2">'
        b"again</a><A HREF='/q'>y</a>"
        b'<a href="http://x.test/">no</a><a href="javascript:alert(1)">no</a><a href="mailto:a@b">no</a>'
        b'<a rel="nofollow" href="/no">no</a><a href="https://u:p@x.test/">no</a><a href="//y.test/z">z</a>'
        b'<a href="https://0x7f.1/">no</a><a href="\x00/bad">no</a>'
    )
    assert read_page("https://x.test/a/b", html, "").links == (
        "https://x.test/dir/p?a=1&b=2",
        "https://x.test/q",
        "https://y.test/z",
    )


def test_a_sitemap_that_is_a_bomb_or_no_sitemap_is_refused() -> None:
    bombs = (gzip.compress(bytes(60 << 20)), b"\x1f\x8bnot", b"<!DOCTYPE a><urlset/>", b"not xml")
    for bomb in bombs:
        with pytest.raises(SourceAnswerInvalid):
            read_sitemap(bomb)
    assert normal_url("https://X.test:443#f") == "https://x.test/"
    assert normal_url("ftp://x.test") == ""
