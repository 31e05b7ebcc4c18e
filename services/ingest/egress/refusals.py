"""Why a request was not sent, or its answer not taken. Messages name hosts, never paths or headers."""

from __future__ import annotations

from services.common.errors import PermissionDenied, ResourceExhausted, Unavailable


class EgressRefused(PermissionDenied):
    """Requests may not go there: the scheme, port, host or address is not allowed, or a redirect was not."""

    reason = "ADDRESS_REFUSED"


class EgressUnavailable(Unavailable):
    """The host was not found or reached, its certificate does not hold, or it broke off or was too slow."""

    reason = "PEER_UNAVAILABLE"


class AnswerTooLarge(ResourceExhausted):
    """The answer exceeds a limit: its body, its headers, or what its compression unpacks to."""

    reason = "ANSWER_TOO_LARGE"
