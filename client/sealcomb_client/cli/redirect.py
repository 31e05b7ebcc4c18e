"""Where the user's browser comes back to: a listener on loopback for one redirect (RFC 8252, 7.3).

It answers one path with one plain page, takes a redirect whose state is the expected one, and ends. What it
was sent is never printed or written.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_QUERY_CHARS_MAX = 16 * 1024
_PAGE = b"<!doctype html><title>Sealcomb</title><p>%s You may close this window.</p>"


class RedirectListener:
    """Listens on a free port of 127.0.0.1; use it as a context manager."""

    def __init__(self, kind: str, port: int = 0) -> None:
        self._path = f"/callback/{kind}"
        self._expected = ""
        self._brought: dict[str, str] | None = None
        listener = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                listener._take(self)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                """Says nothing: its lines would hold the code."""

        self._server = HTTPServer(("127.0.0.1", port), Handler)

    def __enter__(self) -> RedirectListener:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.server_close()

    @property
    def uri(self) -> str:
        """The redirect address."""
        return f"http://127.0.0.1:{self._server.server_port}{self._path}"

    def wait(self, state: str, timeout_s: float) -> Mapping[str, str] | None:
        """What the redirect with this state brought; None if it does not come in time."""
        self._expected = state
        end_s = time.monotonic() + timeout_s
        while self._brought is None:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return None
            self._server.timeout = min(left_s, 1.0)
            self._server.handle_request()
        return self._brought

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        place = urlsplit(request.path)
        fields = {}
        if len(request.path) <= _QUERY_CHARS_MAX:
            fields = {name: values[0] for name, values in parse_qs(place.query).items()}
        state = fields.get("state", "")
        if place.path != self._path or not hmac.compare_digest(state.encode(), self._expected.encode()):
            _answer(request, 404, b"This is not the answer that was waited for.")
            return
        self._brought = fields
        said = b"Access was not granted." if "error" in fields else b"Done."
        _answer(request, 200, said)


def _answer(request: BaseHTTPRequestHandler, status: int, text: bytes) -> None:
    page = _PAGE % text
    request.send_response(status)
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": str(len(page)),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'",
        "Connection": "close",
    }
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(page)
