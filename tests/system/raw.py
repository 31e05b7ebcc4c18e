"""Calls at the edge as raw bytes: what a caller could send who does not use our client."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from sealcomb_client import ApiError, Connection
from sealcomb_client.errors import from_rpc_error


@dataclass(frozen=True)
class Answer:
    """All that a caller can see of an answer; what differs from call to call (request id) is left out."""

    code: str
    reason: str = ""
    message: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @classmethod
    def of(cls, error: ApiError) -> Answer:
        fields = tuple((violation.field, violation.description) for violation in error.fields)
        return cls(error.code, error.reason, error.message, fields)


class RawCaller:
    """Sends bytes to any method with any token."""

    def __init__(self, connection: Connection) -> None:
        assert connection.ca_file is not None
        credentials = grpc.ssl_channel_credentials(connection.ca_file.read_bytes())
        self._channel = grpc.secure_channel(connection.endpoint, credentials)
        self._token = connection.token

    def close(self) -> None:
        self._channel.close()

    def __call__(
        self,
        path: str,
        body: bytes,
        *,
        token: str | None = None,
        kind: str = "unary_unary",
        timeout_s: float = 20,
    ) -> Answer:
        """The answer to one request, sent the way that the method's kind wants."""
        bearer = self._token if token is None else token
        metadata = (("authorization", f"Bearer {bearer}"),) if bearer else ()
        request = iter([body]) if kind.startswith("stream") else body
        call = getattr(self._channel, kind)(path)
        try:
            response = call(request, metadata=metadata, timeout=timeout_s)
            if kind.endswith("stream"):
                response = b"".join(response)
        except grpc.RpcError as error:
            return Answer.of(from_rpc_error(error))
        return Answer("OK", body=response)
