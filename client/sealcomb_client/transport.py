"""One channel to the edge: the token on every call, a deadline always, and patience where it is safe.

A call that the edge refused for its rate was not carried out, so any call may be repeated after
the delay that the refusal names. A call that found the service unavailable may have been carried
out, so only calls that are safe to repeat are. Nothing is repeated past the call's own deadline.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from sealcomb_client.connection import Connection, ConnectionIncomplete
from sealcomb_client.errors import ApiError, from_rpc_error

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_COLLECTION_HEADER = "sealcomb-collection"
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 2.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and chance, so that tests need neither."""

    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    # Between 0 and 1; spreads the repeats of many clients.
    jitter: Callable[[], float] = random.random


class Transport:
    """Calls stub methods with the connection's tokens."""

    def __init__(self, connection: Connection, timing: Timing | None = None) -> None:
        root = connection.ca_file.read_bytes() if connection.ca_file else None
        self._connection = connection
        self._timing = timing or Timing()
        self.channel = grpc.secure_channel(
            connection.endpoint,
            grpc.ssl_channel_credentials(root),
            options=(
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                # Repeats are decided here, where it is known which calls are safe.
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                # What one attempt may take, the handshake of a busy edge with it.
                ("grpc.min_reconnect_backoff_ms", 5_000),
                ("grpc.max_reconnect_backoff_ms", 2_000),
            ),
        )

    def close(self) -> None:
        """Closes the channel."""
        self.channel.close()

    def unary(
        self,
        method: Callable[..., _T],
        request: Any,
        *,
        timeout_s: float,
        safe: bool = True,
        operator: bool = False,
    ) -> _T:
        """The response of a unary call. Raises ApiError."""
        metadata = (*self._metadata(operator=operator), *_hint(request))
        return self._patiently(
            lambda left_s: method(request, timeout=left_s, metadata=metadata), timeout_s, safe=safe
        )

    def upload(
        self, method: Callable[..., _T], make_parts: Callable[[], Iterable[Any]], *, timeout_s: float
    ) -> _T:
        """The response of a client stream, whose parts can be made anew for a repeat. Raises ApiError."""
        metadata = self._metadata(operator=False)

        def attempt(left_s: float) -> _T:
            return method(iter(make_parts()), timeout=left_s, metadata=metadata)

        return self._patiently(attempt, timeout_s, safe=True)

    def download(
        self, method: Callable[..., Iterable[_T]], request: Any, *, timeout_s: float, operator: bool = False
    ) -> Iterator[_T]:
        """The responses of a server stream. Raises ApiError, also in the middle."""
        try:
            yield from method(request, timeout=timeout_s, metadata=self._metadata(operator=operator))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def anonymous(self, method: Callable[..., _T], request: Any, *, timeout_s: float) -> _T:
        """The response of a call that needs no token. Raises ApiError."""
        return self._patiently(lambda left_s: method(request, timeout=left_s), timeout_s, safe=True)

    def _metadata(self, *, operator: bool) -> tuple[tuple[str, str], ...]:
        token = self._connection.operator_token if operator else self._connection.token
        if not token:
            name = "SEALCOMB_OPERATOR_TOKEN" if operator else "SEALCOMB_TOKEN"
            raise ConnectionIncomplete(f"this call needs a token; set {name}")
        return (("authorization", f"Bearer {token}"),)

    def _patiently(self, attempt: Callable[[float], _T], timeout_s: float, *, safe: bool) -> _T:
        end_s = self._timing.monotonic_s() + timeout_s
        backoff_s = _BACKOFF_FIRST_S
        while True:
            left_s = end_s - self._timing.monotonic_s()
            try:
                return attempt(max(left_s, 0.001))
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
            wait_s = _wait_s(error, backoff_s * (0.5 + self._timing.jitter()), safe=safe)
            left_s = end_s - self._timing.monotonic_s()
            if wait_s is None or wait_s >= left_s:
                raise error
            self._timing.sleep(wait_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)


def _hint(request: Any) -> tuple[tuple[str, str], ...]:
    """What keeps the calls about one collection together at the edge, of which it sees no more than this.

    Two bytes of a hash: enough to spread collections over replicas, too few to tell names by.
    """
    collection = getattr(request, "collection", "")
    if not isinstance(collection, str) or not collection:
        return ()
    return ((_COLLECTION_HEADER, hashlib.sha256(collection.encode()).hexdigest()[:4]),)


def _wait_s(error: ApiError, backoff_s: float, *, safe: bool) -> float | None:
    """How long to wait before the same call; None where it must not be repeated."""
    if error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is not None:
        return error.retry_after_s
    if error.code == "UNAVAILABLE" and safe:
        return max(error.retry_after_s or 0.0, backoff_s)
    return None
