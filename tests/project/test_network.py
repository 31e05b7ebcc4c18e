"""The tests' own fence: no test reaches past this machine, and the fence is what stops it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

# TEST-NET-1 (RFC 5737) belongs to nobody; a UDP connect sends nothing.
_OUTSIDE = ("192.0.2.1", 9)
_ATTEMPT = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect({_OUTSIDE!r})"


def test_an_outside_address_is_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
        pytest.raises(RuntimeError, match="tests stay on this machine"),
    ):
        outside.connect(_OUTSIDE)


def test_an_outside_datagram_is_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
        pytest.raises(RuntimeError, match="tests stay on this machine"),
    ):
        outside.sendto(b"", _OUTSIDE)


def test_a_name_that_needs_a_resolver_is_refused() -> None:
    with pytest.raises(RuntimeError, match="tests stay on this machine"):
        socket.getaddrinfo("sealcomb.invalid", 443)


def test_without_the_fence_the_same_attempt_is_not_refused_by_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ATTEMPT], capture_output=True, text=True, timeout=30, check=False
    )
    assert "tests stay on this machine" not in done.stderr


def test_loopback_and_unix_sockets_are_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
