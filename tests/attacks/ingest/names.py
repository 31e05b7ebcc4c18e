"""A hostile name server (RFC 1035): names that are public and inner in turn, and live no time at all."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Sequence

_A, _AAAA = 1, 28


class NameServer:
    """Answers on 127.0.0.53. `questions` counts the look-ups of each name for IPv4 addresses."""

    def __init__(self, public: str, inner: Sequence[str]) -> None:
        self.questions: dict[str, int] = {}
        self._public = public
        self._inner = itertools.cycle(inner)
        self._turn = itertools.count()

    def start(self) -> None:
        """Answers from now on."""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.53", 53))

        def serve() -> None:
            while True:
                question, peer = server.recvfrom(4096)
                server.sendto(self._answer(question), peer)

        threading.Thread(target=serve, daemon=True).start()

    def _answer(self, question: bytes) -> bytes:
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += 1 + question[at]
        end = at + 5
        (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
        name = ".".join(labels).lower()
        addresses = self._addresses(name) if kind == _A else []
        head = question[:2] + struct.pack("!HHHHH", 0x8580, 1, len(addresses), 0, 0)
        records = b"".join(
            struct.pack("!HHHIH", 0xC00C, _A, 1, 0, 4) + socket.inet_aton(found) for found in addresses
        )
        return head + question[12:end] + records

    def _addresses(self, name: str) -> list[str]:
        self.questions[name] = self.questions.get(name, 0) + 1
        if name.startswith("rebind."):
            return [self._public] if next(self._turn) % 2 == 0 else [next(self._inner)]
        if name.startswith("mixed."):
            return [self._public, next(self._inner)]
        if name.startswith("inner."):
            return [next(self._inner)]
        return [self._public] if name.startswith("hostile.") else []
