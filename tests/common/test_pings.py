"""An idle connection that is asked now and then whether it lives goes on, as Envoy asks it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common.clock import SystemClock
from services.common.context import ContextVerifier
from services.common.rpc import server as inner
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.tls import TlsFiles
from tests.certificates import TestCa

_PINGS = 4
_APART_S = 1.2
_SETTINGS, _PING, _GOAWAY = 4, 6, 7


def _frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload


def _kinds(raw: bytes) -> list[int]:
    found = []
    while len(raw) >= 9:
        size = int.from_bytes(raw[:3], "big")
        found.append(raw[3])
        raw = raw[9 + size :]
    return found


def _ping_idle(port: int, tls: TlsFiles) -> list[int]:
    """The kinds of frames that a connection without calls gets to hear."""
    context = ssl.create_default_context(cafile=str(tls.folder / "ca.pem"))
    context.load_cert_chain(tls.folder / "cert.pem", tls.folder / "key.pem")
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    heard = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="vectorstore") as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS))
        for _ in range(_PINGS):
            time.sleep(_APART_S)
            connection.sendall(_frame(_PING, bytes(8)))
        connection.settimeout(2)
        try:
            while part := connection.recv(65536):
                heard += part
        except TimeoutError:
            pass
    return _kinds(heard)


async def _frames(folder: Path) -> list[int]:
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    verifier = ContextVerifier("vectorstore", {"gateway": signing.public_key()}, SystemClock())
    guard = GuardInterceptor("vectorstore", rules_for("vectorstore"), verifier)
    server = InnerServer("127.0.0.1:0", ca.service_files(folder, "vectorstore"), guard)
    await server.start()
    try:
        return await asyncio.to_thread(_ping_idle, server.port, ca.service_files(folder, "gateway"))
    finally:
        await server.stop(0)


async def test_pings_of_an_idle_connection_do_not_end_it(tmp_path: Path) -> None:
    kinds = await _frames(tmp_path)
    assert kinds.count(_PING) == _PINGS
    assert _GOAWAY not in kinds


async def test_twin_with_grpcs_own_patience_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [option for option in inner._OPTIONS if "ping" not in option[0] and "permit" not in option[0]]
    monkeypatch.setattr(inner, "_OPTIONS", tuple(own))
    assert _GOAWAY in await _frames(tmp_path)
