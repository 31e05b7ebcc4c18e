"""The listener of the edge: TLS, HTTP/2 and its limits, the filters, and one exact route for each method."""

from __future__ import annotations

import base64

from services.common.context import HEADER
from services.common.errors import (
    DeadlineExceeded,
    ResourceExhausted,
    SealcombError,
    Unavailable,
    Unimplemented,
)
from services.common.methods import EDGE_METHODS, GATEWAY, HEALTH_METHODS, PublicMethod
from services.common.rpc.problem import PROBLEM_HEADER, PROBLEM_WANTED_HEADER
from services.common.rpc.status import status_proto
from services.common.tracing import TRACE_HEADER
from services.gateway.envoy.access_log import access_log
from services.gateway.envoy.balancing import (
    COLLECTION_CHARACTERS,
    COLLECTION_HEADER,
    hash_policy,
    retry_policy,
)
from services.gateway.envoy.clients import (
    certificate_demand,
    early_address,
    late_address,
    listed_headers,
    listener_filters,
)
from services.gateway.envoy.headers import unlisted_pattern
from services.gateway.envoy.plan import (
    CONNECTION_WINDOW_BYTES,
    POLICY_CLUSTER,
    SDS_EDGE,
    STREAM_WINDOW_BYTES,
    TLS13,
    TYPE,
    EdgePlan,
    Json,
    sds_config,
    socket_address,
)
from services.gateway.envoy.refusals import (
    HEADER_KIB_MAX,
    HEADER_KIB_READ,
    REFUSALS,
    SIZE_HEADER,
    refusal_routes,
)
from services.gateway.ext_authz import ACCOUNT_HEADER, ADDRESS_HEADER

FILTERS = TYPE + "extensions.filters.http."
_EXT_AUTHZ_FILTER, _BUFFER_FILTER, _LIMIT_FILTER = "ext_authz", "buffer", "local_ratelimit"
_IDLE_S = 60.0
_HEALTH_TIMEOUT_S = 5.0
_HEALTH_CALLS_PER_SECOND = 100
# gRPC's own message header in front of a message of the largest size.
_MESSAGE_PREFIX_BYTES = 5


def edge_listener(plan: EdgePlan) -> Json:
    """The one listener that faces clients."""
    demand, validation = certificate_demand(plan)
    return {
        "name": "edge",
        "address": socket_address(plan.listen),
        # Two processes must not share the port without knowing; and few long connections want an even spread.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": CONNECTION_WINDOW_BYTES,
        "listener_filters": listener_filters(plan),
        "filter_chains": [
            {
                "transport_socket_connect_timeout": "5s",
                "transport_socket": {
                    "name": "tls",
                    "typed_config": {
                        "@type": TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                        **demand,
                        "common_tls_context": {
                            "tls_params": TLS13,
                            "alpn_protocols": ["h2"],
                            "tls_certificate_sds_secret_configs": [sds_config(plan, SDS_EDGE)],
                            **validation,
                        },
                    },
                },
                "filters": [{"name": "http", "typed_config": _connection_manager(plan)}],
            }
        ],
    }


def _connection_manager(plan: EdgePlan) -> Json:
    return {
        "@type": TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "codec_type": "HTTP2",
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": STREAM_WINDOW_BYTES,
            "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
            # SETTINGS_MAX_HEADER_LIST_SIZE: a client that heeds it refuses larger metadata itself.
            "custom_settings_parameters": [{"identifier": 6, "value": HEADER_KIB_MAX * 1024}],
            "max_outbound_frames": 5000,
            "max_outbound_control_frames": 500,
            "max_consecutive_inbound_frames_with_empty_payload": 1,
            "max_inbound_priority_frames_per_stream": 20,
            "max_inbound_window_update_frames_per_data_frame_sent": 10,
            "connection_keepalive": {"interval": "60s", "timeout": "20s", "connection_idle_interval": "60s"},
        },
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_connection_duration": "3600s",
            "max_headers_count": 64,
            # A header with an underscore may be read as one with a hyphen further in.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "max_request_headers_kb": HEADER_KIB_READ,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": f"{_IDLE_S:g}s",
        "delayed_close_timeout": "1s",
        # No name of a server; and no path is changed, so that what is routed is what was sent.
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "use_remote_address": True,
        "skip_xff_append": True,
        "xff_num_trusted_hops": plan.trusted_hops,
        # The id is never the client's, and every answer has it.
        "generate_request_id": True,
        "always_set_request_id_in_response": True,
        "access_log": [access_log(plan)],
        "early_header_mutation_extensions": [header_allow_list(plan)],
        "local_reply_config": _local_replies(plan),
        "http_filters": [
            {"name": _LIMIT_FILTER, "typed_config": local_limit()},
            *late_address(plan, ADDRESS_HEADER),
            {"name": _EXT_AUTHZ_FILTER, "typed_config": _ext_authz(plan)},
            {"name": _BUFFER_FILTER, "typed_config": _buffer(plan)},
            {
                "name": "router",
                "typed_config": {"@type": FILTERS + "router.v3.Router", "suppress_envoy_headers": True},
            },
        ],
        "route_config": {
            "name": "methods",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        *refusal_routes(),
                        *(_route(plan, method) for method in EDGE_METHODS.values()),
                        *(_health_route(path) for path in HEALTH_METHODS),
                        _unlisted_route(),
                    ],
                    "request_headers_to_remove": [
                        "authorization",
                        ADDRESS_HEADER,
                        SIZE_HEADER,
                        "x-envoy-external-address",
                        "x-forwarded-proto",
                    ],
                    "response_headers_to_remove": ["server", "x-envoy-upstream-service-time"],
                }
            ],
        },
    }


def header_allow_list(plan: EdgePlan, more: tuple[str, ...] = ()) -> Json:
    """What removes every other header of a client before any filter sees it."""
    names = (*listed_headers(plan), *more)
    hint = f"%REQ({COLLECTION_HEADER}):{COLLECTION_CHARACTERS}%"
    return {
        "name": "header-allow-list",
        "typed_config": {
            "@type": TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                # Of all that was sent, so before anything is taken away.
                {"append": _header(SIZE_HEADER, "%REQUEST_HEADERS_BYTES%", "OVERWRITE_IF_EXISTS_OR_ADD")},
                {"append": _header(COLLECTION_HEADER, hint, "OVERWRITE_IF_EXISTS")},
                {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": unlisted_pattern(names)}}}},
                {"append": _header(ADDRESS_HEADER, early_address(plan), "OVERWRITE_IF_EXISTS_OR_ADD")},
            ],
        },
    }


def _ext_authz(plan: EdgePlan) -> Json:
    return {
        "@type": FILTERS + "ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": False,
        "status_on_error": {"code": "ServiceUnavailable"},
        "charge_cluster_response_stats": False,
        "allowed_headers": _exact("authorization", ADDRESS_HEADER, "x-request-id", PROBLEM_WANTED_HEADER),
        "http_service": {
            "server_uri": {"uri": "http://policy", "cluster": POLICY_CLUSTER, "timeout": "1s"},
            "authorization_response": {
                "allowed_upstream_headers": _exact(HEADER, ACCOUNT_HEADER, TRACE_HEADER),
                "allowed_client_headers": _exact(
                    "grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after", PROBLEM_HEADER
                ),
            },
        },
    }


def _buffer(plan: EdgePlan) -> Json:
    return {
        "@type": FILTERS + "buffer.v3.Buffer",
        "max_request_bytes": plan.message_bytes_max + _MESSAGE_PREFIX_BYTES,
    }


def local_limit(per_second: int = 0) -> Json:
    """So many calls a second of a route in all; none: it is off, but where a route turns it on."""
    limit: Json = {"@type": FILTERS + "local_ratelimit.v3.LocalRateLimit", "stat_prefix": "open"}
    if per_second:
        whole = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
        limit |= {
            "token_bucket": {
                "max_tokens": per_second,
                "tokens_per_fill": per_second,
                "fill_interval": "1s",
            },
            "filter_enabled": whole,
            "filter_enforced": whole,
            "rate_limited_as_resource_exhausted": True,
        }
    return limit


def _route(plan: EdgePlan, method: PublicMethod) -> Json:
    streams = method.path in plan.client_streams
    return {
        # What the access log calls it: a name of ours, never what a client sent.
        "name": method.path,
        "match": _exact_match(method.path),
        "route": {
            "cluster": method.owner,
            **_timeouts(method.timeout_s),
            "hash_policy": hash_policy(method),
            "retry_policy": retry_policy(method),
            # Streams have places of their own, so that neither keeps the other out.
            **({"priority": "HIGH"} if streams or method.path in plan.server_streams else {}),
        },
        "typed_per_filter_config": {_BUFFER_FILTER: _no_buffer()} if streams else {},
    }


def _health_route(path: str) -> Json:
    # The one method that no token bounds.
    return {
        "name": path,
        "match": _exact_match(path),
        "route": {"cluster": GATEWAY, **_timeouts(_HEALTH_TIMEOUT_S)},
        "typed_per_filter_config": {
            _EXT_AUTHZ_FILTER: _no_policy(),
            _LIMIT_FILTER: local_limit(_HEALTH_CALLS_PER_SECOND),
        },
    }


def _unlisted_route() -> Json:
    message = "no such method"
    return {
        "name": "unlisted",
        "match": {"prefix": "/"},
        # For gRPC, Envoy makes status 12 of 404.
        "direct_response": {"status": 404, "body": {"inline_string": message}},
        "response_headers_to_add": [
            {"header": {"key": "grpc-status-details-bin", "value": _details(Unimplemented(message))}}
        ],
        "typed_per_filter_config": {_EXT_AUTHZ_FILTER: _no_policy(), _BUFFER_FILTER: _no_buffer()},
    }


def _exact_match(path: str) -> Json:
    return {
        "path": path,
        "grpc": {},
        # The path match overlooks a query; the header match does not.
        "headers": [
            {"name": ":path", "string_match": {"exact": path}},
            {"name": ":method", "string_match": {"exact": "POST"}},
        ],
    }


def _timeouts(seconds: float) -> Json:
    limit = f"{seconds:g}s"
    return {
        # The stream's duration is what is bounded; a client's own deadline counts where it is shorter.
        "timeout": "0s",
        # An upload is silent while its document is worked on, a watch while nothing happens: that is no
        # reason to end them before their own limit. The service bounds a client that stops sending.
        "idle_timeout": f"{max(_IDLE_S, seconds):g}s",
        "max_stream_duration": {"max_stream_duration": limit, "grpc_timeout_header_max": limit},
    }


def _no_policy() -> Json:
    return {"@type": FILTERS + "ext_authz.v3.ExtAuthzPerRoute", "disabled": True}


def _no_buffer() -> Json:
    return {"@type": FILTERS + "buffer.v3.BufferPerRoute", "disabled": True}


def _exact(*names: str) -> Json:
    return {"patterns": [{"exact": name} for name in names]}


def _local_reply(http_status: int, error: SealcombError) -> Json:
    """What Envoy says itself in place of its own words, which would name inner parts."""
    details = _details(error)
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {
                    "op": "EQ",
                    "value": {"default_value": http_status, "runtime_key": "edge.none"},
                }
            }
        },
        "body": {"inline_string": error.message},
        "headers_to_add": [
            _header("grpc-status", str(error.kind.value), "OVERWRITE_IF_EXISTS_OR_ADD"),
            # An answer of the policy process has these already, and keeps them.
            _header("grpc-status-details-bin", details, "ADD_IF_ABSENT"),
        ],
    }


def _header(key: str, value: str, append_action: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": append_action}


def _details(error: SealcombError) -> str:
    return base64.b64encode(status_proto(error, "").SerializeToString()).decode().rstrip("=")


def _local_replies(plan: EdgePlan) -> Json:
    too_large = ResourceExhausted(
        f"the request is larger than {plan.message_bytes_max} bytes; send less at once",
        reason="MESSAGE_TOO_LARGE",
    )
    unavailable = Unavailable("a part of the service is not reachable; try again", retry_after_s=1.0)
    late = DeadlineExceeded("the call did not end in time; try again")
    replies = {**REFUSALS, 413: too_large, 503: unavailable, 408: late, 504: late}
    mappers = [_local_reply(http_status, error) for http_status, error in replies.items()]
    return {"mappers": [_overload_reply(), *mappers]}


def _overload_reply() -> Json:
    """What is said of a call that is one too many for its service."""
    overloaded = Unavailable("too many calls at once; try again", reason="OVERLOADED", retry_after_s=1.0)
    return {**_local_reply(503, overloaded), "filter": {"response_flag_filter": {"flags": ["UO"]}}}
