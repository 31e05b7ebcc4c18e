"""The access log: one line of JSON for each call, written by Envoy to the gateway's standard output.

Every field is listed here and none holds what a client wrote: the method is the route's name, never
the path; there is no query, no header of a client, no token and no name.
"""

from __future__ import annotations

from services.common.methods import HEALTH_METHODS
from services.gateway.envoy.clients import logged_address
from services.gateway.envoy.plan import TYPE, EdgePlan, Json
from services.gateway.ext_authz import ACCOUNT_HEADER


def access_log(plan: EdgePlan) -> Json:
    """The logger of a listener. Health is asked too often and tells too little to be in it."""
    fields = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%",
        "event": "access",
        "service": "edge",
        "method": "%ROUTE_NAME%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "account": f"%REQ({ACCOUNT_HEADER.upper()})%",
    }
    if plan.log_addresses:
        fields["address"] = logged_address(plan)
    return {
        "name": "access",
        "filter": _not_to(HEALTH_METHODS[0]),
        "typed_config": {
            "@type": TYPE + "extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {
                "json_format": fields,
                "json_format_options": {"sort_properties": False},
                "omit_empty_values": True,
            },
        },
    }


def _not_to(path: str) -> Json:
    header = {"name": ":path", "string_match": {"exact": path}, "invert_match": True}
    return {"header_filter": {"header": header}}
