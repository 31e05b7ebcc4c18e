"""What calls of this service use of their account's quotas, for the gateway to count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Reporter(Protocol):
    """Who passes usage on."""

    def add(self, account: str, *, points: int = 0, documents: int = 0, size_bytes: int = 0) -> None:
        """Counts what an account used."""


class CallCounts:
    """Counts finished calls of the methods that write."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def upsert(self, account: str, request: Any, _response: object) -> None:
        """An Upsert, or a batch of an UpsertStream: its points, and the bytes of the message."""
        self._reporter.add(account, points=len(request.points), size_bytes=request.ByteSize())

    def imported(self, account: str, request: Any, _response: object) -> None:
        """A message of an ImportCollection; what is sealed counts by its bytes alone."""
        self._reporter.add(account, points=len(request.frame.points.points), size_bytes=request.ByteSize())

    def update(self, account: str, request: Any, _response: object) -> None:
        """An UpdatePoints, which writes its points anew."""
        self._reporter.add(account, points=len(request.updates), size_bytes=request.ByteSize())

    def put_document(self, account: str, request: Any, response: Any) -> None:
        """A PutDocument: its passages and the original's bytes, unless the document was there already."""
        document = request.document
        if response.document.object_key == document.object_key:
            self._reporter.add(
                account, points=len(request.passages), documents=1, size_bytes=document.size_bytes
            )

    def by_method(self) -> dict[str, Callable[[str, Any, Any], None]]:
        """How each method is counted."""
        return {
            "/sealcomb.v1.CollectionService/ImportCollection": self.imported,
            "/sealcomb.v1.VectorService/Upsert": self.upsert,
            "/sealcomb.v1.VectorService/UpsertStream": self.upsert,
            "/sealcomb.v1.VectorService/UpdatePoints": self.update,
            "/sealcomb.internal.v1.PassageService/PutDocument": self.put_document,
        }
