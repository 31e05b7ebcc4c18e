"""The private HTTP port of every service: metrics for Prometheus, probes for whoever starts and stops it.

It answers three paths and no more, to anyone who reaches it, so it listens on loopback unless it is
told otherwise, and nothing that a caller chose is ever in an answer:

    /metrics   Prometheus text
    /livez     200 while the event loop turns; depends on nothing else, so no outage elsewhere restarts us
    /readyz    200 while the service wants calls: started, recovered, and able to reach what it needs

It runs in threads of its own: a loop that stands still is seen from outside, which is the point.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import Gauge, make_wsgi_app

_BEAT_S = 1.0
# A loop that stands still this long is broken: nothing that is allowed to block it takes so long.
_STILL_S_MAX = 20.0
_REQUEST_S_MAX = 5.0

# Of the process: Prometheus says which one by the labels of its pod.
_ready = Gauge("sealcomb_ready", "1 while the process wants calls")
_build = Gauge("sealcomb_build_info", "1, with the version that runs", ["version"])


class Heartbeat:
    """Says whether an event loop still turns."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._last_s = monotonic_s()

    async def beat(self) -> None:
        """Runs in the loop until cancelled."""
        while True:
            self._last_s = self._monotonic_s()
            await asyncio.sleep(_BEAT_S)

    def is_alive(self) -> bool:
        """Whether the last beat is recent."""
        return self._monotonic_s() - self._last_s < _STILL_S_MAX


def ops_app(is_alive: Callable[[], bool], is_ready: Callable[[], bool]) -> Callable[..., Iterable[bytes]]:
    """The WSGI application of the three paths."""
    metrics = make_wsgi_app()
    probes = {"/livez": is_alive, "/readyz": is_ready}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") != "GET" or path not in ("/metrics", *probes):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not found\n"]
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        passes = probes[path]()
        start_response("200 OK" if passes else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if passes else b"no\n"]

    return app


@contextmanager
def serving_ops(host: str, port: int, is_ready: Callable[[], bool]) -> Iterator[int]:
    """Serves the port for the block, which runs in an event loop; gives the port, 0 for none.

    Raises OSError where the port is taken.
    """
    if not port:
        yield 0
        return
    _ready.set_function(lambda: float(is_ready()))
    _build.labels(metadata.version("sealcomb")).set(1)
    heartbeat = Heartbeat()
    beating = asyncio.get_running_loop().create_task(heartbeat.beat())
    server = make_server(
        host, port, ops_app(heartbeat.is_alive, is_ready), server_class=_Server, handler_class=_Handler
    )
    thread = threading.Thread(target=server.serve_forever, name="ops", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        beating.cancel()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False


class _Handler(WSGIRequestHandler):
    # Of each read: who connects and says nothing is cut.
    timeout = _REQUEST_S_MAX

    def log_message(self, *_args: Any) -> None:
        """Says nothing: paths are the caller's words."""
