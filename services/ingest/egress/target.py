"""Where one hop of a request goes, taken apart once so that nothing reads the address differently later.

The checked parts, not the text, are what the connection and the request line are made of. Must
never accept what two readers could understand in two ways: such an address is refused.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import idna

from services.ingest.egress.refusals import EgressRefused

URL_CHARS_MAX = 8192
_PORT = 443
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_URL = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z_a-z~\[\]]+")
# What other programs take for an address in other clothes: 2130706433, 0177.0.0.1, 0x7f.1.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Target:
    """`path` is the path with its query as it goes on the request line. The scheme is https always."""

    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        """`host`, or `host:port` where the port is not 443; the form of lists of hosts."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORT else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address."""
        return f"https://{self.netloc}{self.path}"

    @property
    def packed(self) -> bytes | None:
        """The address's bytes when the host is a literal one."""
        return packed_literal(self.host)


@dataclass(frozen=True, slots=True)
class HostRules:
    """What the operator allows beyond public hosts on port 443: exact `host:port` pairs."""

    allowed: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> HostRules:
        """From `127.0.0.1:9000,minio.internal:443`. ValueError when an entry is not `host:port`."""
        pairs = set()
        for entry in filter(None, (part.strip() for part in text.split(","))):
            host, _, port = entry.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError("an allowed host is written HOST:PORT")
            try:
                pairs.add((normal_host(host.strip("[]")), int(port)))
            except EgressRefused as error:
                raise ValueError(f"an allowed host is written HOST:PORT: {error}") from None
        return cls(frozenset(pairs))

    def allows_private(self, host: str, port: int) -> bool:
        """Whether this host may be on a private network or this machine."""
        return (host, port) in self.allowed

    def check(self, target: Target) -> None:
        """EgressRefused when the port is not one that requests may go to."""
        if target.port != _PORT and not self.allows_private(target.host, target.port):
            raise EgressRefused(f"requests go to port {_PORT} alone, not to {target.netloc}")


def parse_url(url: str) -> Target:
    """The target of an absolute https address. EgressRefused when it is anything else."""
    if len(url) > URL_CHARS_MAX:
        raise EgressRefused("the address is too long")
    try:
        ascii_url = _ascii(url)
        parts = urlsplit(ascii_url)
        port = parts.port
    except ValueError:
        raise EgressRefused("the address cannot be read") from None
    if parts.scheme.lower() != "https":
        raise EgressRefused("requests are https alone")
    if "@" in parts.netloc or "\\" in url:
        raise EgressRefused("an address holds no user, password or backslash")
    if not parts.hostname or port == 0:
        raise EgressRefused("the address has no host")
    path = parts.path or "/"
    if not path.startswith("/"):
        raise EgressRefused("the address cannot be read")
    return Target(
        normal_host(parts.hostname), port or _PORT, path + (f"?{parts.query}" if parts.query else "")
    )


def join_url(base: str, reference: str) -> str:
    """A redirect's or link's address in full. EgressRefused when it cannot be read."""
    if len(reference) > URL_CHARS_MAX or any(ord(c) <= 0x20 or ord(c) == 0x7F for c in reference):
        raise EgressRefused("the address cannot be read")
    try:
        return urljoin(base, reference)
    except ValueError:
        raise EgressRefused("the address cannot be read") from None


def normal_host(host: str) -> str:
    """The one spelling of a host: lower case, IDNA, no zone, no trailing dot. EgressRefused without one."""
    if ":" in host:
        return _normal_v6(host)
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise EgressRefused("the host's name cannot be read") from None
    host = host.lower()
    if packed_literal(host) is not None:
        return host
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise EgressRefused("the host's name cannot be read")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise EgressRefused("an address in numbers is written as four decimal ones")
    return host


def packed_literal(host: str) -> bytes | None:
    """The bytes of a strictly written IPv4 or IPv6 address; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
    return None


def is_listed(target: Target, hosts: Iterable[str]) -> bool:
    """Whether a list of `host` and `host:port` has this target's."""
    return target.netloc in {host.lower() for host in hosts}


def _normal_v6(host: str) -> str:
    packed = None if "%" in host else packed_literal(host)
    if packed is None:
        raise EgressRefused("the host's address cannot be read")
    return socket.inet_ntop(socket.AF_INET6, packed)


def _ascii(url: str) -> str:
    """The address with every other character percent-encoded, but for the host's, which IDNA encodes."""
    if _URL.fullmatch(url):
        return url
    # Control characters and spaces are dropped or moved by some parsers, so they are refused.
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url):
        raise ValueError("control character")
    scheme, separator, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    if not separator or "?" in netloc or "#" in netloc:
        raise ValueError("no plain host")
    return f"{scheme}://{netloc}{slash}" + quote(path, safe="!#$%&'()*+,-./:;=?@_~[]")
