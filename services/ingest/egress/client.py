"""The client that every request of ingest to the internet goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `url` is where it came from, after redirects."""

    status: int
    headers: Mapping[str, str] = field(repr=False)  # names in lower case
    content: bytes = field(repr=False)
    url: str


class Egress(Protocol):
    """Sends requests under the rules of services.ingest.egress."""

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        authorization: str = "",
        authorized_hosts: tuple[str, ...] = (),
        body_bytes_max: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request and its answer, whatever its status; redirects of GET and HEAD are followed.

        `authorization` goes to `authorized_hosts` alone, in no redirect to another origin, and a
        first address outside them is refused. Raises EgressRefused, EgressUnavailable, AnswerTooLarge.
        """
