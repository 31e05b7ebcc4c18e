"""Names to addresses, each name once for each connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Protocol

ADDRESSES_MAX = 32


class Resolver(Protocol):
    """Finds the addresses of a host."""

    async def resolve(self, host: str) -> Sequence[bytes]:
        """Packed addresses, all that the answer held. OSError when there are none."""


class SystemResolver:
    """The machine's resolver. Its threads are the loop's default ones, so a slow answer blocks nobody."""

    async def resolve(self, host: str) -> Sequence[bytes]:
        """Packed addresses, all that the answer held. OSError when there are none."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError("the name cannot be looked up") from error
        addresses: dict[bytes, None] = {}
        for family, _, _, _, address in found[:ADDRESSES_MAX]:
            if family in (socket.AF_INET, socket.AF_INET6):
                # A zone would choose another link; the table knows addresses without one.
                addresses[socket.inet_pton(family, str(address[0]).partition("%")[0])] = None
        if len(found) > ADDRESSES_MAX:
            raise OSError("too many addresses")
        return tuple(addresses)
