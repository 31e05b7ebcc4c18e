"""E16, E17: addresses are taken apart once, and what could be read in two ways is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.egress.addresses import Reach, reach_of
from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.target import HostRules, Target, is_listed, join_url, packed_literal, parse_url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/",
        "unix:/run/x", "//example.com/", "example.com", "https:///path", "https://", "https://user@example.com/",
        "https://user:pw@example.com/", "https://example.com@127.0.0.1/", "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\.example.com/", "https://exa mple.com/", "https://example.com/\r\nX: y",
        "https://example.com\t/", "\x00https://example.com/", " https://example.com/", "https://example.com:0/",
        "https://example.com:99999/", "https://example.com:abc/", "https://example.com./",
        "https://.example.com/", "https://a..b/", "https://-x-.com-/", "https://[::1/", "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/",
        "https://0177.0.0.1/", "https://127.1/", "https://0/", "https://127.0.0.1.2/", "https://1.2.3.4.0x5/",
        "https://256.256.256.256/", "https://exa%6dple.com/", "https://127.0.0.1%2f.example.com/",
        "https://example.com?x=1@y/" + "a" * 9000, "https://\u2488.example.com/",
    ],
)  # fmt: skip
def test_an_address_that_is_not_plain_https_to_a_plain_host_is_refused(url: str) -> None:
    with pytest.raises(EgressRefused):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://Example.COM", Target("example.com", 443, "/")),
        ("https://example.com:8443/a?b=c#d", Target("example.com", 8443, "/a?b=c")),
        ("https://bücher.example/ü", Target("xn--bcher-kva.example", 443, "/%C3%BC")),
        ("https://[2606:4700::1111]/", Target("2606:4700::1111", 443, "/")),
        ("HTTPS://1.1.1.1/x", Target("1.1.1.1", 443, "/x")),
        ("https://example.com/?next=https://a@b", Target("example.com", 443, "/?next=https://a@b")),
        ("https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/", Target("127.0.0.1", 443, "/")),
    ],
)
def test_an_address_has_one_spelling(url: str, target: Target) -> None:
    assert parse_url(url) == target
    assert parse_url(target.url) == target


def test_wide_digits_are_the_loopback_address_and_treated_as_one() -> None:
    literal = packed_literal(parse_url("https://①②⑦.⓪.⓪.①/").host)
    assert literal is not None
    assert reach_of(literal) is Reach.PRIVATE


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.com/{text}"):
        try:
            target = parse_url(url)
        except EgressRefused:
            continue
        assert target.path.startswith("/")
        assert target.path.isascii()
        assert not set(target.path) & set(" \r\n\t\\")
        assert target.host == target.host.lower()


def test_a_relative_redirect_stays_and_an_absolute_one_leads_away() -> None:
    assert join_url("https://a.example/x/y", "../z") == "https://a.example/z"
    assert parse_url(join_url("https://a.example/x", "//b.example/z")).host == "b.example"
    with pytest.raises(EgressRefused):
        join_url("https://a.example/", "/x\r\nY: z")


def test_ports_other_than_443_are_refused_but_for_exactly_those_allowed() -> None:
    rules = HostRules.parse("127.0.0.1:9000, Minio.internal:443,[::1]:8443")
    rules.check(parse_url("https://127.0.0.1:9000/"))
    rules.check(parse_url("https://[::1]:8443/"))
    for url in ("https://127.0.0.1:9001/", "https://minio.internal:9000/", "https://example.com:22/"):
        with pytest.raises(EgressRefused):
            rules.check(parse_url(url))
    assert rules.allows_private("minio.internal", 443)
    assert not rules.allows_private("example.com", 443)


@pytest.mark.parametrize("text", ["host", ":443", "host:", "host:0", "host:x", "0x7f.1:443", "a b:443"])
def test_an_allowed_host_that_is_not_host_and_port_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        HostRules.parse(text)


def test_a_host_is_listed_only_with_its_port() -> None:
    assert is_listed(parse_url("https://api.example/x"), ("API.example",))
    assert not is_listed(parse_url("https://api.example:8443/x"), ("api.example",))
    assert is_listed(parse_url("https://api.example:8443/x"), ("api.example:8443",))
    assert not is_listed(parse_url("https://api.example.evil/x"), ("api.example",))
