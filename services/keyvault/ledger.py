"""The ledger: what was destroyed, kept outside the database, so that no old copy of the database undoes it.

It lies on the keys' side (beside the root key, never in the database's folder) and is append only: one signed
statement a line, each with the hash of the line before it. Beside it lies the mark, one signed statement
of how far the database had come, so that an older database is noticed.

    ledger line    kind "destruction", sequence from 1, previous (hex SHA-256 of the line before, 64
                   zeros for the first), account, resource (empty: the whole account), destroy_us
    mark           kind "database mark", counter and nonce as in the database, and sequence and hash of the
                   ledger's last line

Both hold ids alone. A line that a crash cut off is dropped at the next start; anything else that does
not hold is refused: whoever may write this file could otherwise bring keys back, or name accounts to be
destroyed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.keyvault.statements import DESTRUCTION, MARK, StatementDamaged, StatementSigner

_FIRST = "0" * 64
_LINE_BYTES_MAX = 4096


class LedgerDamaged(ValueError):
    """The ledger or its mark does not hold, or its end is missing."""


class LedgerFailed(Exception):
    """The ledger could not be written."""


@dataclass(frozen=True, slots=True)
class _End:
    """The last line's sequence and hash, and where the file ends."""

    sequence: int = 0
    hash: str = _FIRST
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Destruction:
    """An account, or one resource of it, that is gone for good."""

    account: str
    resource: str
    destroy_us: int


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the database had come: a counter that only grows, and a nonce of that step."""

    counter: int
    nonce: bytes


class Ledger:
    """The ledger file, its lines verified when it is opened. One process at a time holds it."""

    def __init__(self, path: Path, signer: StatementSigner) -> None:
        """Makes the file where there is none. Raises LedgerDamaged."""
        self._path = path
        self._signer = signer
        self._mark_path = path.with_name(path.name + ".mark")
        # One value, since it is written by one thread and read by others.
        self._end = _End()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerDamaged(
                f"the ledger cannot be opened: {error.strerror}; set SEALCOMB_LEDGER_FILE to a place for it"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync_folder(path.parent)
            for _ in self.entries():
                pass
            os.ftruncate(self._file, self._end.size_bytes)
            self.mark()
        except BlockingIOError:
            os.close(self._file)
            raise LedgerDamaged("another keyvault holds the ledger; stop it first") from None
        except BaseException:
            os.close(self._file)
            raise

    def entries(self) -> Iterator[Destruction]:
        """Every line, verified."""
        sequence, previous, at = 0, _FIRST, 0
        with self._path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE_BYTES_MAX), b""), 1):
                if not line.endswith(b"\n"):
                    if file.read(1):
                        raise LedgerDamaged(
                            f"line {number} of the ledger is too long; restore it from a copy"
                        )
                    break
                entry = self._entry(number, line[:-1], sequence + 1, previous)
                sequence, previous = sequence + 1, hashlib.sha256(line[:-1]).hexdigest()
                at += len(line)
                yield entry
        self._end = _End(sequence, previous, at)

    def append(self, destructions: Iterable[Destruction]) -> None:
        """Adds lines durably: all of them, or none. Raises LedgerFailed."""
        end, lines = self._end, b""
        sequence, previous = end.sequence, end.hash
        for destruction in destructions:
            sequence += 1
            fields = {
                "sequence": sequence,
                "previous": previous,
                "account": destruction.account,
                "resource": destruction.resource,
                "destroy_us": destruction.destroy_us,
            }
            line = self._signer.sign(DESTRUCTION, fields).encode()
            previous = hashlib.sha256(line).hexdigest()
            lines += line + b"\n"
        try:
            # What an earlier attempt half wrote goes first, or these lines would follow it.
            os.ftruncate(self._file, end.size_bytes)
            if os.write(self._file, lines) != len(lines):
                raise OSError("a part was written")
            os.fsync(self._file)
        except OSError as error:
            raise LedgerFailed("the ledger cannot be written") from error
        self._end = _End(sequence, previous, end.size_bytes + len(lines))

    def mark(self) -> Mark:
        """The last mark; counter 0 where none was ever written. Raises LedgerDamaged."""
        try:
            text = self._mark_path.read_bytes()[:_LINE_BYTES_MAX].decode("ascii")
        except FileNotFoundError:
            return Mark(0, b"")
        except UnicodeDecodeError:
            raise LedgerDamaged("the ledger's mark is damaged; restore both from a copy") from None
        try:
            fields = self._signer.read(text, MARK)
            mark, sequence, end = (
                Mark(int(fields["counter"]), bytes.fromhex(fields["nonce"])),
                int(fields["sequence"]),
                str(fields["hash"]),
            )
        except (StatementDamaged, KeyError, TypeError, ValueError):
            raise LedgerDamaged("the ledger's mark is damaged; restore both from a copy") from None
        if sequence > self._end.sequence or (sequence == self._end.sequence and end != self._end.hash):
            raise LedgerDamaged("the ledger has lost its end; restore it from its latest copy")
        return mark

    def set_mark(self, mark: Mark) -> None:
        """Replaces the mark durably. Raises LedgerFailed."""
        end = self._end
        fields = {
            "counter": mark.counter,
            "nonce": mark.nonce.hex(),
            "sequence": end.sequence,
            "hash": end.hash,
        }
        temp = self._mark_path.with_name(self._mark_path.name + ".new")
        try:
            temp.unlink(missing_ok=True)
            descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._signer.sign(MARK, fields).encode())
                file.flush()
                os.fsync(file.fileno())
            temp.replace(self._mark_path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise LedgerFailed("the ledger's mark cannot be written") from error

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._file)

    def _entry(self, number: int, line: bytes, sequence: int, previous: str) -> Destruction:
        try:
            fields = self._signer.read(line.decode("ascii"), DESTRUCTION)
            entry = Destruction(str(fields["account"]), str(fields["resource"]), int(fields["destroy_us"]))
            holds = fields["sequence"] == sequence and fields["previous"] == previous
        except (StatementDamaged, KeyError, TypeError, ValueError):
            holds = False
        if not holds:
            raise LedgerDamaged(f"line {number} of the ledger does not hold; restore it from a copy")
        return entry


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
