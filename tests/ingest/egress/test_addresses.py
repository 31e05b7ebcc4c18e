"""E14, E17: the table of addresses holds against every clothing of an inner address."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.egress.addresses import Reach, reach_of


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.0.8",
        "0.0.0.0", "0.1.2.3", "198.18.0.1", "203.0.113.9", "224.0.0.1", "255.255.255.255", "192.88.99.1",
        "::", "fe80::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254", "2001::1", "2001:db8::1", "3fff::1",
        "2002:a9fe:a9fe::", "2002:7f00:1::", "2001:0:a9fe:a9fe::", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe", "::ffff:169.254.169.254", "::169.254.169.254", "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_metadata_link_local_tunnels_and_reserved_addresses_are_denied_whoever_allows_them(text: str) -> None:
    assert reach_of(packed(text)) is Reach.DENIED


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.255.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
     "::1", "fc00::1", "fdff::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
)  # fmt: skip
def test_private_addresses_are_private_in_every_clothing(text: str) -> None:
    assert reach_of(packed(text)) is Reach.PRIVATE


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "8.8.8.8", "140.82.121.6", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1",
     "2606:4700::1111", "2a00:1450:4001:80b::200a", "::ffff:8.8.8.8", "64:ff9b::808:808", "2001:200::1"],
)  # fmt: skip
def test_public_addresses_are_reached(text: str) -> None:
    assert reach_of(packed(text)) is Reach.PUBLIC


@given(st.ip_addresses(v=4))
def test_no_address_that_the_standard_library_calls_private_is_public_here(
    found: ipaddress.IPv4Address,
) -> None:
    if not found.is_global or found.is_multicast:
        assert reach_of(found.packed) is not Reach.PUBLIC
    assert reach_of(b"\0" * 10 + b"\xff\xff" + found.packed) is reach_of(found.packed)


@given(st.ip_addresses(v=6))
def test_no_v6_address_that_the_standard_library_calls_private_is_public_here(
    found: ipaddress.IPv6Address,
) -> None:
    if found.ipv4_mapped is None and not found.is_global:
        assert reach_of(found.packed) is not Reach.PUBLIC


def test_the_standard_library_would_let_metadata_through() -> None:
    """Twin: why the table is our own."""
    taken_for_global = ["168.63.129.16", "64:ff9b::a9fe:a9fe"]
    assert any(ipaddress.ip_address(text).is_global for text in taken_for_global)
    assert all(reach_of(packed(text)) is Reach.DENIED for text in taken_for_global)


def test_an_address_of_another_length_is_none() -> None:
    with pytest.raises(ValueError, match="4 or 16"):
        reach_of(socket.inet_aton("127.0.0.1") + b"\0")
