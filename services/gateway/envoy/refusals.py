"""Calls that are refused by what their headers say, whatever their method, before policy is asked."""

from __future__ import annotations

from services.common.errors import ResourceExhausted, SealcombError, Unimplemented
from services.gateway.envoy.plan import TYPE, Json

# Larger headers are refused as a call should be; far larger ones end the stream, or the connection.
HEADER_KIB_MAX, HEADER_KIB_READ = 16, 80
# How much a client sent in headers, written by the edge.
SIZE_HEADER = "sealcomb-size"
# What the access log calls these routes.
REFUSED = "refused"
_FILTERS = TYPE + "extensions.filters.http."

# The HTTP statuses of these refusals, and what a gRPC client is told.
REFUSALS: dict[int, SealcombError] = {
    431: ResourceExhausted(
        f"the headers are larger than {HEADER_KIB_MAX} KiB; send less metadata", reason="METADATA_TOO_LARGE"
    ),
    415: Unimplemented(
        "compressed requests are not taken; send them as they are", reason="COMPRESSION_REFUSED"
    ),
}


def refusal_routes() -> list[Json]:
    """Routes that stand before all others."""
    too_large = {"start": HEADER_KIB_MAX * 1024 + 1, "end": 2**62}
    return [
        refusal(431, {"name": SIZE_HEADER, "range_match": too_large}),
        # A few kilobytes may be many megabytes: what a service holds must be what its client sent.
        refusal(
            415,
            {"name": "grpc-encoding", "present_match": True},
            {"name": "grpc-encoding", "string_match": {"exact": "identity"}, "invert_match": True},
        ),
    ]


def refusal(status: int, *headers: Json) -> Json:
    """A route that refuses whatever all the matchers hold for."""
    return {
        "name": REFUSED,
        "match": {"prefix": "/", "headers": list(headers)},
        "direct_response": {"status": status},
        "typed_per_filter_config": {
            "ext_authz": {"@type": _FILTERS + "ext_authz.v3.ExtAuthzPerRoute", "disabled": True},
            "buffer": {"@type": _FILTERS + "buffer.v3.BufferPerRoute", "disabled": True},
        },
    }
