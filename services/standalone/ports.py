"""Free ports for the inner services.

They are taken from below the system's range for outgoing connections: a port from within it could
be given to somebody's outgoing connection while its service restarts, even to a connection to
that very port.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_LOWEST = 12_000
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RANGE_START_USUAL = 32_768
_TRIES = 500


class PortTaken(Exception):
    """A port is in use by another program."""


def free_ports(count: int, chance: random.Random | None = None) -> list[int]:
    """Distinct loopback ports that nobody listens on right now."""
    chance = chance or random.SystemRandom()
    highest = _outgoing_start() - 1
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(_TRIES):
            if len(ports) == count:
                return ports
            port = chance.randint(_LOWEST, highest)
            # Held until all are found, so that none is found twice.
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
    raise PortTaken("no free ports found on loopback")


def require_free(host: str, port: int, setting: str) -> None:
    """Raises PortTaken if something listens on the port, which the setting can change."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the edge itself will do, so that connections that just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(f"port {port} of {host} is in use; stop that program or set {setting}") from error


def _outgoing_start() -> int:
    try:
        start = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        start = _RANGE_START_USUAL
    return start if start > _LOWEST + 1_000 else _RANGE_START_USUAL
