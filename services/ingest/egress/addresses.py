"""Which addresses on the internet a request may go to.

An own table over packed bytes, because libraries disagree: Python 3.11's `ipaddress` calls
64:ff9b::a9fe:a9fe, 2002:a9fe:a9fe:: and 168.63.129.16 global, and three of them lead to a cloud's metadata
service. Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), RFC 6052 (NAT64),
and the clouds' own documentation of their metadata addresses. IPv6 is denied but for 2000::/3.
"""

from __future__ import annotations

import enum
import ipaddress

_PRIVATE_V4 = ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
_PRIVATE_V6 = ("::1/128", "fc00::/7")
_DENIED_V4 = (
    "0.0.0.0/8",
    "100.100.100.200/32",  # metadata of Alibaba Cloud, inside the shared range
    "168.63.129.16/32",  # Azure's host
    "169.254.0.0/16",  # link-local: metadata of AWS, Google, Azure and most others
    "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",  # 6to4 relays
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
_GLOBAL_V6 = "2000::/3"
_DENIED_V6 = (
    "2001::/23",  # protocol assignments, Teredo and ORCHID among them
    "2001:db8::/32",
    "2002::/16",  # 6to4: an IPv4 address of anybody's choice inside
    "2620:4f:8000::/48",
    "3fff::/20",
    "fd00:ec2::/32",  # metadata of AWS
    "fd20:ce::/32",  # metadata of Google Cloud
)
# Both carry an IPv4 address in their last four bytes, which is what is reached.
_CARRIES_V4 = ("::ffff:0:0/96", "64:ff9b::/96")


class Reach(enum.Enum):
    """How far a request to an address may go."""

    PUBLIC = "public"
    # Private networks and this machine: only where the operator has named the host.
    PRIVATE = "private"
    # Metadata, link-local, multicast, reserved, tunnels: never.
    DENIED = "denied"


def reach_of(packed: bytes) -> Reach:
    """The reach of an address of 4 or 16 bytes. ValueError for another length."""
    if len(packed) == 4:
        return _reach(int.from_bytes(packed, "big"), _V4_DENIED, _V4_PRIVATE, Reach.PUBLIC)
    if len(packed) != 16:
        raise ValueError("an address has 4 or 16 bytes")
    number = int.from_bytes(packed, "big")
    if any(number >> shift == prefix for prefix, shift in _V6_CARRIES_V4):
        return reach_of(packed[12:])
    public = Reach.PUBLIC if number >> _V6_GLOBAL[1] == _V6_GLOBAL[0] else Reach.DENIED
    return _reach(number, _V6_DENIED, _V6_PRIVATE, public)


_Prefix = tuple[int, int]


def _reach(number: int, denied: tuple[_Prefix, ...], private: tuple[_Prefix, ...], otherwise: Reach) -> Reach:
    if any(number >> shift == prefix for prefix, shift in denied):
        return Reach.DENIED
    if any(number >> shift == prefix for prefix, shift in private):
        return Reach.PRIVATE
    return otherwise


def _prefix(text: str) -> _Prefix:
    network = ipaddress.ip_network(text)
    shift = network.max_prefixlen - network.prefixlen
    return int(network.network_address) >> shift, shift


_V4_PRIVATE = tuple(map(_prefix, _PRIVATE_V4))
_V4_DENIED = tuple(map(_prefix, _DENIED_V4))
_V6_PRIVATE = tuple(map(_prefix, _PRIVATE_V6))
_V6_DENIED = tuple(map(_prefix, _DENIED_V6))
_V6_GLOBAL = _prefix(_GLOBAL_V6)
_V6_CARRIES_V4 = tuple(map(_prefix, _CARRIES_V4))
