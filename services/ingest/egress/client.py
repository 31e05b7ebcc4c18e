"""The client that every request of ingest to the internet goes through.

https alone, to port 443 of hosts whose every address is public, or to what the operator has named;
the whole check again at each redirect; an authorization goes to the hosts it is for and nowhere
else; everything is bounded in bytes and time. It reads no environment and keeps no cookies. Errors name
hosts, never paths, headers or bodies, which may be secret.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpcore

from services.ingest.egress.body import read_body
from services.ingest.egress.network import CheckedNetwork, open_tls
from services.ingest.egress.refusals import AnswerTooLarge, EgressRefused, EgressUnavailable
from services.ingest.egress.resolver import Resolver, SystemResolver
from services.ingest.egress.target import HostRules, Target, is_listed, join_url, parse_url

USER_AGENT = "Sealcomb/0.1"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,8190}[\x21-\x7e])?")
# Another origin is told no more than a stranger would be: other headers may hold a secret.
_HEADERS_FOR_ANY_ORIGIN = frozenset({"accept", "user-agent"})


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """Bounds of every request, unless a call says less or more."""

    body_bytes_max: int = 64 * 1024 * 1024
    timeout_s: float = 60.0
    connect_timeout_s: float = 10.0
    redirects_max: int = 5
    connections_max: int = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `url` is where it came from, after redirects; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    url: str = field(repr=False)


class Egress:
    """Sends requests under the rules of this package. One for the process."""

    def __init__(
        self,
        rules: HostRules,
        *,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        limits: EgressLimits | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._rules = rules
        self.limits = limits or EgressLimits()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or open_tls(),
            max_connections=self.limits.connections_max,
            max_keepalive_connections=self.limits.connections_max // 2,
            keepalive_expiry=30.0,
            http1=True,
            http2=False,
            network_backend=network or CheckedNetwork(rules, resolver or SystemResolver()),
        )

    @classmethod
    def open(cls, allow: str = "", ca_file: Path | None = None, limits: EgressLimits | None = None) -> Egress:
        """From settings: `allow` as HostRules.parse reads it. ValueError when it does not hold."""
        return cls(HostRules.parse(allow), tls=open_tls(str(ca_file) if ca_file else None), limits=limits)

    async def close(self) -> None:
        """Closes every connection."""
        await self._pool.aclose()

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        authorization: str = "",
        authorized_hosts: tuple[str, ...] = (),
        body_bytes_max: int | None = None,
        timeout_s: float | None = None,
        redirects_max: int | None = None,
    ) -> Answer:
        """One request and its answer, whatever its status; redirects of GET and HEAD are followed.

        `authorization` goes to `authorized_hosts` alone (`host` or `host:port`), and in no redirect
        to another origin; a first address outside them is refused. Raises EgressRefused, EgressUnavailable,
        AnswerTooLarge.
        """
        first = parse_url(url)
        sent = _checked_headers(headers or {}, authorization)
        if authorization and not is_listed(first, authorized_hosts):
            raise EgressRefused(f"the credential is not for {first.netloc}")
        follow = method in ("GET", "HEAD")
        size_max = self.limits.body_bytes_max if body_bytes_max is None else body_bytes_max
        hops = self.limits.redirects_max if redirects_max is None else redirects_max
        target = first
        try:
            async with asyncio.timeout(self.limits.timeout_s if timeout_s is None else timeout_s):
                for _ in range(hops + 1):
                    answer = await self._exchange(method, target, sent, content, size_max)
                    location = answer.headers.get("location", "")
                    if not follow or answer.status not in _REDIRECTS or not location or hops == 0:
                        return answer
                    target = parse_url(join_url(target.url, location))
                    if (target.host, target.port) != (first.host, first.port):
                        sent = {n: v for n, v in sent.items() if n in _HEADERS_FOR_ANY_ORIGIN}
        except TimeoutError:
            raise EgressUnavailable(f"{target.netloc} was too slow") from None
        raise EgressRefused(f"{first.netloc} redirects more than {hops} times")

    async def _exchange(
        self, method: str, target: Target, headers: Mapping[str, str], content: bytes, size_max: int
    ) -> Answer:
        self._rules.check(target)
        timeout = self.limits.timeout_s
        timeouts = {
            "connect": self.limits.connect_timeout_s,
            "read": timeout,
            "write": timeout,
            "pool": timeout,
        }
        url = httpcore.URL(
            scheme=b"https", host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        lines = [(b"Host", target.netloc.encode())]
        lines += [(name.encode(), value.encode()) for name, value in headers.items()]
        if content or method not in ("GET", "HEAD"):
            lines.append((b"Content-Length", str(len(content)).encode()))
        try:
            async with self._pool.stream(
                method, url, headers=lines, content=content, extensions={"timeout": timeouts}
            ) as response:
                return await _whole(response, target, size_max)
        except httpcore.RemoteProtocolError as error:
            # h11 says this when the header outgrows its buffer of 100 KiB.
            if "too large" in str(error) or "buffer" in str(error):
                raise AnswerTooLarge(f"{target.netloc} sent a header larger than the limit") from None
            raise EgressUnavailable(f"{target.netloc} broke off its answer") from None
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError):
            # Without the cause: texts of the TLS and socket layers may repeat what a peer sent.
            raise EgressUnavailable(f"{target.netloc} was not reached, or broke off") from None


async def _whole(response: httpcore.Response, target: Target, size_max: int) -> Answer:
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    announced = headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > size_max:
        raise AnswerTooLarge(f"the answer is larger than {size_max} bytes")
    content = await read_body(response.aiter_stream(), headers.get("content-encoding", ""), size_max)
    return Answer(response.status, headers, content, target.url)


def _checked_headers(headers: Mapping[str, str], authorization: str) -> dict[str, str]:
    """The headers as they are sent. EgressRefused when one could end its line or begin another."""
    sent = {"user-agent": USER_AGENT, "accept-encoding": "identity", "accept": "*/*"}
    sent |= {name.lower(): value for name, value in headers.items()}
    if "authorization" in sent or "host" in sent:
        raise EgressRefused("the authorization and the host are not headers of the caller's choice")
    if authorization:
        sent["authorization"] = authorization
    for name, value in sent.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise EgressRefused("a header or the credential holds a character that headers do not")
    return sent
