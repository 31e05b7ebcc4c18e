"""Who a client is to the edge: how fast connections may come, whose certificates it must show, its address.

The address is the one that the connection comes from, unless the settings say that balancers stand
in front: then it is what the balancer next to us says, by PROXY protocol or in x-forwarded-for. A
certificate that is demanded opens the connection and nothing else: who calls is said by the token.
"""

from __future__ import annotations

from services.gateway.envoy.headers import CLIENT_HEADERS
from services.gateway.envoy.plan import SDS_CLIENT_CA, TYPE, EdgePlan, Json, sds_config

_FORWARDED = "x-forwarded-for"
# The peer of the connection, whatever anybody says; and what is taken for the client.
_PEER = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"
_CLIENT = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"


def listener_filters(plan: EdgePlan) -> list[Json]:
    """What a connection goes through before its handshake."""
    filters = TYPE + "extensions.filters.listener."
    pace: Json = {
        "name": "connection-pace",
        "typed_config": {
            "@type": filters + "local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "connections",
            "token_bucket": {
                "max_tokens": 2 * plan.connections_per_second,
                "tokens_per_fill": plan.connections_per_second,
                "fill_interval": "1s",
            },
        },
    }
    if not plan.proxy_protocol:
        return [pace]
    proxy: Json = {
        "name": "proxy-protocol",
        # A connection without the balancer's words is refused.
        "typed_config": {"@type": filters + "proxy_protocol.v3.ProxyProtocol"},
    }
    return [pace, proxy]


def certificate_demand(plan: EdgePlan) -> tuple[Json, Json]:
    """What goes into the TLS context, and into its common part."""
    if plan.client_ca_file is None:
        return {}, {}
    return (
        {"require_client_certificate": plan.client_certificate_required},
        {"validation_context_sds_secret_config": sds_config(plan, SDS_CLIENT_CA)},
    )


def listed_headers(plan: EdgePlan) -> tuple[str, ...]:
    """The client's headers that pass the allow-list."""
    return (*CLIENT_HEADERS, _FORWARDED) if plan.trusted_hops else CLIENT_HEADERS


def early_address(plan: EdgePlan) -> str:
    """The client's address as the connection tells it."""
    return _CLIENT if plan.proxy_protocol else _PEER


def logged_address(plan: EdgePlan) -> str:
    """The client's address as it is known once the call is over."""
    return _CLIENT if plan.proxy_protocol or plan.trusted_hops else _PEER


def late_address(plan: EdgePlan, header: str) -> list[Json]:
    """The filter that writes the client's address over, where it is known only from the headers."""
    if not plan.trusted_hops:
        return []
    own = {"header": {"key": header, "value": _CLIENT}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return [
        {
            "name": "client-address",
            "typed_config": {
                "@type": TYPE + "extensions.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {"request_mutations": [{"append": own}, {"remove": _FORWARDED}]},
            },
        }
    ]
