"""The way out for libraries that bring their own httpx client, as OAuth's does.

Every request is bound to a fixed list of hosts, whatever its headers, because bodies hold secrets
too (a client secret, a refresh token). Redirects are given back as they are, never followed.
"""

from __future__ import annotations

import httpx

from services.ingest.egress.client import Egress
from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.target import is_listed, parse_url

# What describes the connection or the compressed form, not the content that is handed over.
_NOT_PASSED_ON = frozenset({"connection", "content-encoding", "content-length", "transfer-encoding"})
_SENT = frozenset({"accept", "content-type", "notion-version"})


class EgressTransport(httpx.AsyncBaseTransport):
    """Sends an httpx client's requests through the egress client, to the given hosts alone."""

    def __init__(
        self,
        egress: Egress,
        hosts: tuple[str, ...],
        *,
        body_bytes_max: int = 1 << 20,
        timeout_s: float = 20.0,
    ) -> None:
        self._egress = egress
        self._hosts = hosts
        self._body_bytes_max = body_bytes_max
        self._timeout_s = timeout_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange. Raises as `Egress.send` does."""
        url = str(request.url)
        if not is_listed(parse_url(url), self._hosts):
            raise EgressRefused("the request is not for one of the provider's hosts")
        answer = await self._egress.send(
            request.method,
            url,
            headers={name: value for name, value in request.headers.items() if name.lower() in _SENT},
            content=await request.aread(),
            authorization=request.headers.get("authorization", ""),
            authorized_hosts=self._hosts,
            body_bytes_max=self._body_bytes_max,
            timeout_s=self._timeout_s,
            redirects_max=0,
        )
        headers = {name: value for name, value in answer.headers.items() if name not in _NOT_PASSED_ON}
        return httpx.Response(answer.status, headers=headers, content=answer.content, request=request)
