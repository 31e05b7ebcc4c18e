"""The second door, for clients without gRPC: JSON and gRPC-Web over HTTP/1.1.

It is the listener of the edge with some parts added, so that no control of the first door can be
missing here. JSON is made into the gRPC call that it stands for before policy is asked: what policy
sees, what is routed and what the service is sent is one and the same path. Nothing here decides
who may call what.

The transcoder reads a body before policy is asked, and holds what it has not understood yet without a
bound: a text that does not end would fill Envoy's memory, a number that does not end its time. So a
body's length must be said first, as only HTTP/1.1 can be held to it, and is bounded as a whole.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from services.common.methods import GATEWAY, PUBLIC_METHODS
from services.common.rpc.problem import PROBLEM_WANTED_HEADER
from services.gateway.envoy.listener import FILTERS, edge_listener, header_allow_list, local_limit
from services.gateway.envoy.plan import EdgePlan, Json, socket_address
from services.gateway.envoy.problems import PROBLEM_SCRIPT
from services.gateway.envoy.refusals import REFUSED, refusal

HTTP_LISTENER = "http"
OPENAPI_PATH = "/openapi.json"
# Written by scripts/openapi.py from the protos.
_OPENAPI_FILE = Path(__file__).resolve().parents[1] / "openapi.json"
_VARIABLE = re.compile(r"\{(\w+)\}")
_OPENAPI_BYTES_MAX = 1 << 20
# In all: it is the same for everybody, and needs no token.
_OPENAPI_PER_SECOND = 20
_CORS_MAX_AGE_S = 600
# The largest body of JSON, the array of a stream included. The transcoder reads it before policy is
# asked, in a time that grows with the square of a number's digits: more would be too much for strangers.
BODY_BYTES_MAX = 1 << 20
# What a client said of its body's length, copied since the transcoder takes the originals away.
_LENGTH_HEADER, _CHUNKED_HEADER = "sealcomb-length", "sealcomb-chunked"
# What browsers say of themselves, and what HTTP/1.1 says of the connection; none of it goes inside.
_DOOR_HEADERS = (
    "accept",
    "access-control-request-headers",
    "access-control-request-method",
    "connection",
    "expect",
    "origin",
    "x-grpc-web",
    _LENGTH_HEADER,
    _CHUNKED_HEADER,
)
_GRPC_TYPES = r"application/grpc(?:\+[a-z]+)?|application/grpc-web(?:-text)?(?:\+proto)?"


def http_listener(plan: EdgePlan, listen: str) -> Json:
    """The listener of the second door."""
    listener = edge_listener(plan)
    (chain,) = listener["filter_chains"]
    chain["transport_socket"]["typed_config"]["common_tls_context"]["alpn_protocols"] = ["http/1.1"]
    manager = chain["filters"][0]["typed_config"]
    manager |= {
        "stat_prefix": HTTP_LISTENER,
        "codec_type": "HTTP1",
        "early_header_mutation_extensions": [_with_lengths(header_allow_list(plan, _DOOR_HEADERS))],
        "http_filters": [
            # Outermost, so that it sees every answer of the others.
            _filter("problems", _problems()),
            _filter("grpc_web", {"@type": FILTERS + "grpc_web.v3.GrpcWeb"}),
            _filter("json", _transcoder(plan)),
            _filter("transcoded", _transcoded()),
            # By now the route is that of the method, which says whose pages may call.
            *([_filter("cors", {"@type": FILTERS + "cors.v3.Cors"})] if plan.cors_origins else []),
            *manager["http_filters"],
        ],
    }
    routes = manager["route_config"]
    routes["max_direct_response_body_size_bytes"] = _OPENAPI_BYTES_MAX
    (host,) = routes["virtual_hosts"]
    for route in host["routes"]:
        _admit_grpc_web(route["match"])
    refusals = [route for route in host["routes"] if route["name"] == REFUSED]
    host["routes"][len(refusals) : len(refusals)] = [*_length_routes(), _collision_route()]
    for route in host["routes"]:
        _refuse_unread(route)
    host["routes"].insert(-1, _openapi_route(plan))
    host["request_headers_to_remove"] += [*_DOOR_HEADERS, "x-envoy-original-path", "x-envoy-original-method"]
    host["response_headers_to_add"] = [_header("cache-control", "no-store")]
    if plan.cors_origins:
        host["routes"].insert(-1, _preflight_route())
        host["typed_per_filter_config"] = {"cors": _cors(plan)}
    return listener | {"name": HTTP_LISTENER, "address": socket_address(listen)}


def _with_lengths(extension: Json) -> Json:
    copies: list[Json] = []
    for header, original in ((_LENGTH_HEADER, "CONTENT-LENGTH"), (_CHUNKED_HEADER, "TRANSFER-ENCODING")):
        copies += [{"remove": header}, {"append": _header(header, f"%REQ({original})%")}]
    config = extension["typed_config"]
    config["mutations"] = [*copies, *config["mutations"]]
    return extension


def _length_routes() -> list[Json]:
    too_large = {"start": BODY_BYTES_MAX + 1, "end": 2**62}
    return [
        _length_refusal(411, {"name": _CHUNKED_HEADER, "present_match": True}),
        _length_refusal(413, {"name": _LENGTH_HEADER, "range_match": too_large}),
    ]


def _length_refusal(status: int, header: Json) -> Json:
    # gRPC-Web is bounded as gRPC is.
    no_grpc = {
        "name": "content-type",
        "string_match": {"safe_regex": {"regex": _GRPC_TYPES}},
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }
    return refusal(status, no_grpc, header)


def _refuse_unread(route: Json) -> None:
    # Without services the transcoder is off: it would read the whole body before a refusal is given.
    off = {"@type": FILTERS + "grpc_json_transcoder.v3.GrpcJsonTranscoder", "proto_descriptor_bin": ""}
    if route["name"] == REFUSED:
        route["typed_per_filter_config"]["json"] = off


def _collision_route() -> Json:
    # What paths say, no query says too: the transcoder would believe the query.
    return refusal(400, {"name": ":path", "string_match": {"safe_regex": {"regex": collision_pattern()}}})


def collision_pattern() -> str:
    """A regular expression of every path with a query that has a field which some path binds."""
    document = json.loads(_OPENAPI_FILE.read_text(encoding="utf-8"))
    fields = {field for path in document["paths"] for field in _VARIABLE.findall(path)}
    # JSON has two spellings of a field; no name of one needs percent signs, which could hide it.
    fields |= {re.sub("_(.)", lambda found: found[1].upper(), field) for field in fields}
    return rf"[^?]*\?(?:.*&)?(?:[^=&]*%[^=&]*|{'|'.join(sorted(fields))})(?:[=&].*)?"


def _admit_grpc_web(match: Json) -> None:
    # gRPC-Web is made into gRPC by a filter, and the route is chosen before that.
    if match.pop("grpc", None) is not None:
        match["headers"].append(
            {"name": "content-type", "string_match": {"safe_regex": {"regex": _GRPC_TYPES}}}
        )


def _transcoder(plan: EdgePlan) -> Json:
    return {
        "@type": FILTERS + "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor_bin": base64.b64encode(plan.descriptors).decode(),
        "services": sorted({path.split("/")[1] for path in PUBLIC_METHODS}),
        "print_options": {"preserve_proto_field_names": True, "always_print_primitive_fields": True},
        # %2F within a name is a slash of the name: paths are cut before they are decoded.
        "url_unescape_spec": "ALL_CHARACTERS",
        "request_validation_options": {
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        "max_request_body_size": BODY_BYTES_MAX,
    }


def _transcoded() -> Json:
    return {
        "@type": FILTERS + "header_mutation.v3.HeaderMutation",
        "mutations": {
            "request_mutations": [
                {
                    "append": {
                        "header": {
                            "key": PROBLEM_WANTED_HEADER,
                            "value": "%REQ(X-ENVOY-ORIGINAL-METHOD)%",
                        },
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    }
                }
            ]
        },
    }


def _problems() -> Json:
    return {
        "@type": FILTERS + "lua.v3.Lua",
        "default_source_code": {"inline_string": PROBLEM_SCRIPT},
    }


def _openapi_route(plan: EdgePlan) -> Json:
    return {
        "name": OPENAPI_PATH,
        "match": {
            "path": OPENAPI_PATH,
            "headers": [
                {"name": ":path", "string_match": {"exact": OPENAPI_PATH}},
                {"name": ":method", "string_match": {"exact": "GET"}},
            ],
        },
        "direct_response": {"status": 200, "body": {"filename": str(_OPENAPI_FILE)}},
        "response_headers_to_add": [_header("content-type", "application/json")],
        "typed_per_filter_config": {
            "ext_authz": {"@type": FILTERS + "ext_authz.v3.ExtAuthzPerRoute", "disabled": True},
            "local_ratelimit": local_limit(_OPENAPI_PER_SECOND),
        },
    }


def _preflight_route() -> Json:
    # The filter answers a preflight where the route leads somewhere; what it left over, policy would refuse.
    return {
        "name": "preflight",
        "match": {
            "prefix": "/",
            "headers": [
                {"name": ":method", "string_match": {"exact": "OPTIONS"}},
                {"name": "access-control-request-method", "present_match": True},
            ],
        },
        "route": {"cluster": GATEWAY},
    }


def _cors(plan: EdgePlan) -> Json:
    return {
        "@type": FILTERS + "cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in plan.cors_origins],
        "allow_methods": "GET, POST, PATCH, DELETE",
        "allow_headers": "authorization, content-type, grpc-timeout, x-grpc-web",
        "expose_headers": "grpc-message, grpc-status, grpc-status-details-bin, retry-after, x-request-id",
        "max_age": str(_CORS_MAX_AGE_S),
        "allow_credentials": False,
        "forward_not_matching_preflights": False,
    }


def _filter(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
