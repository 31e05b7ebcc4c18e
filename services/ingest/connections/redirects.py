"""Which redirect addresses a connection may be begun with: exact ones, and loopback for programs.

RFC 9700, 4.1: a redirect address is compared as a whole string. The one exception is RFC 8252, 7.3: a program
of the user's own machine listens on a port that it finds free. Each source has a path of its own there, so
that a program can tell which provider has answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.common.errors import invalid

_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]):([1-9]\d{0,4})/callback/([a-z0-9_]{1,64})")
_REGISTERED = re.compile(r"https://[a-z0-9.-]{1,253}(:\d{1,5})?/[A-Za-z0-9/_.~-]{0,1024}")


class Redirects:
    """The registered addresses."""

    def __init__(self, registered: Iterable[str] = ()) -> None:
        self._registered = frozenset(registered)
        if any(not _REGISTERED.fullmatch(address) for address in self._registered):
            raise ValueError("a redirect address must be https, without query and fragment")

    def check(self, address: str, kind: str) -> str:
        """The address. Raises InvalidArgument unless it is registered, or loopback for this source."""
        if address in self._registered:
            return address
        match = _LOOPBACK.fullmatch(address)
        if match is None or int(match[2]) > 65535 or match[3] != kind:
            raise invalid(
                "redirect_uri",
                f"is not registered; use one of the operator's or http://127.0.0.1:PORT/callback/{kind}",
                reason="REDIRECT_NOT_REGISTERED",
            )
        return address
