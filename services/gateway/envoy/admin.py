"""Envoy's administration interface, by the Unix socket on which alone it listens.

Only this user can reach the socket. It is asked for numbers and told to drain; nothing of what it
says about configuration or clients is passed on.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

_TIMEOUT_S = 2.0
_ANSWER_BYTES_MAX = 8 << 20


class AdminUnreachable(Exception):
    """Envoy does not answer; it may have ended."""


class EnvoyAdmin:
    """Short questions to one Envoy; blocking, so call it in a thread."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def stop_listening(self) -> None:
        """Takes no more connections; those there are end with the answers owed. Raises AdminUnreachable."""
        # A failed health check is what makes Envoy say GOAWAY, or `connection: close`, with every answer.
        self._ask("POST", "/healthcheck/fail")
        self._ask("POST", "/drain_listeners")

    def active_calls(self) -> int:
        """Calls in flight at all listeners. Raises AdminUnreachable."""
        answer = self._ask("GET", "/stats?format=json&filter=downstream_rq_active")
        try:
            numbers = {one["name"]: one["value"] for one in json.loads(answer)["stats"] if "name" in one}
            if "http.edge.downstream_rq_active" not in numbers:
                raise AdminUnreachable("a number is missing")
            # The question itself is a call, and counted.
            return sum(value for name, value in numbers.items() if name != "http.admin.downstream_rq_active")
        except (ValueError, KeyError, TypeError):
            raise AdminUnreachable("an answer of another form") from None

    def connections(self) -> tuple[int, int]:
        """Connections open at the doors, and calls ever begun there. Raises AdminUnreachable."""
        answer = self._ask("GET", "/stats?format=json&filter=downstream_(cx_active|rq_total)$")
        try:
            found = {one["name"]: int(one["value"]) for one in json.loads(answer)["stats"] if "name" in one}
        except (ValueError, KeyError, TypeError):
            raise AdminUnreachable("an answer of another form") from None
        doors = {name: value for name, value in found.items() if not name.startswith("http.admin.")}
        if "http.edge.downstream_cx_active" not in doors:
            raise AdminUnreachable("a number is missing")
        open_now = sum(value for name, value in doors.items() if name.endswith("cx_active"))
        return open_now, sum(value for name, value in doors.items() if name.endswith("rq_total"))

    def healthy_replicas(self) -> dict[str, int]:
        """How many replicas of each service its own checks found healthy. Raises AdminUnreachable."""
        answer = self._ask("GET", "/stats?format=json&filter=membership_healthy")
        try:
            found = [(one["name"], int(one["value"])) for one in json.loads(answer)["stats"] if "name" in one]
            return {name.split(".")[1]: value for name, value in found}
        except (ValueError, KeyError, TypeError, IndexError):
            raise AdminUnreachable("an answer of another form") from None

    def metrics(self) -> str:
        """What it counts, in the text format of Prometheus. Raises AdminUnreachable."""
        return self._ask("GET", "/stats/prometheus").decode("utf-8", "replace")

    def _ask(self, method: str, path: str) -> bytes:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise AdminUnreachable("Envoy does not answer") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise AdminUnreachable(f"Envoy answered {answer.status}")
        return body


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))
