"""Whether a peer's certificate may still be used: asked at every call, not at the handshake alone.

TLS looks at a certificate once. A connection that was made while it was good would outlive its expiry, and a
stolen one would serve until then. So each call is refused once its peer's certificate has expired, or
its serial number is in the file of refused ones, which may grow while the service runs. A file that cannot be
read or understood refuses nobody who was let in before, and lets nobody off: the last good list stays.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.common.clock import Clock
from services.common.tls import CertificateUnreadable, certificate_facts

_log = structlog.get_logger("peers")
REFUSED_FILE = "refused-serials.txt"
_LOOK_S = 0.5
_PARSED_MAX = 256
_FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Parsed:
    serial: int
    expires_s: float


class PeerCertificates:
    """The certificates of those who call one server. `refused_file` holds a hex serial number a line."""

    def __init__(self, refused_file: Path, clock: Clock) -> None:
        self._file = refused_file
        self._clock = clock
        self._parsed: OrderedDict[bytes, _Parsed] = OrderedDict()
        self._refused: frozenset[int] = frozenset()
        self._look_s = float("-inf")
        self._seen: tuple[int, int, int] | None = None

    def refusal(self, pem: bytes) -> str:
        """Why a call under this certificate is refused; empty: it is not."""
        try:
            found = self._parse(pem)
        except CertificateUnreadable:
            return "unreadable certificate"
        if self._clock.now_s() >= found.expires_s:
            return "expired certificate"
        now_s = self._clock.monotonic_s()
        if now_s >= self._look_s:
            self._look_s = now_s + _LOOK_S
            self._read()
        return "refused certificate" if found.serial in self._refused else ""

    def _parse(self, pem: bytes) -> _Parsed:
        found = self._parsed.get(pem)
        if found is None:
            found = _Parsed(*certificate_facts(pem))
            self._parsed[pem] = found
            if len(self._parsed) > _PARSED_MAX:
                self._parsed.popitem(last=False)
        return found

    def _read(self) -> None:
        try:
            state = self._file.stat()
        except FileNotFoundError:
            self._seen, self._refused = None, frozenset()
            return
        except OSError as error:
            _log.error("the refused certificates cannot be read", why=error.strerror)
            return
        seen = (state.st_mtime_ns, state.st_ino, state.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            if state.st_size > _FILE_BYTES_MAX:
                raise ValueError("too long")
            lines = self._file.read_text("ascii").split("\n")
            serials = (line.partition("#")[0].strip().replace(":", "") for line in lines)
            self._refused = frozenset(int(serial, 16) for serial in serials if serial)
        except OSError as error:
            # Looked at again: this may pass.
            self._seen = None
            _log.error("the refused certificates cannot be read", why=error.strerror)
            return
        except ValueError:
            _log.error("the refused certificates cannot be read", why="not a hex serial number a line")
            return
        _log.info("refused certificates read", count=len(self._refused))
