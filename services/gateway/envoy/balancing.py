"""How calls spread over a service's replicas, what is tried again, and which replicas are put aside.

A call that a service may have begun is sent again only if its method changes nothing: a write is
never sent twice by the edge. What a service answers is never a reason to put it aside, or one
account's errors would take it from all others.
"""

from __future__ import annotations

import ipaddress

from services.common.methods import INGEST, VECTORSTORE, PublicMethod
from services.gateway.envoy.plan import TYPE, Json
from services.gateway.ext_authz import ACCOUNT_HEADER

# Which collection a call is about, as the SDK hides it: a few bits that only spread calls. Nobody trusts it.
COLLECTION_HEADER = "sealcomb-collection"
COLLECTION_CHARACTERS = 16
# Only what cannot have begun; and what may have, for methods that change nothing.
_NOT_BEGUN = "connect-failure,refused-stream,reset-before-request"
_BEGUN = "reset"
_SLOW_START_S = 10


def hash_policy(method: PublicMethod) -> list[Json]:
    """What decides the replica: the account, and for vectors its collection too."""
    by_account: Json = {"header": {"header_name": ACCOUNT_HEADER}}
    if method.owner != VECTORSTORE:
        return [by_account]
    # The two are combined, so that no client can aim at another account's replica by a hint of its own.
    return [by_account, {"header": {"header_name": COLLECTION_HEADER}}]


def retry_policy(method: PublicMethod) -> Json:
    """When a call is sent again, to a replica that was not tried yet."""
    return {
        "retry_on": f"{_NOT_BEGUN},{_BEGUN}" if method.reads else _NOT_BEGUN,
        "num_retries": 2,
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "previous-hosts",
                "typed_config": {
                    "@type": TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
    }


def discovery(addresses: tuple[str, ...]) -> Json:
    """Where Envoy takes the replicas from: the settings' own addresses, or all that a name resolves to."""
    if all(_is_ip(address) for address in addresses):
        return {"type": "STATIC"}
    return {
        "type": "STRICT_DNS",
        "dns_refresh_rate": "2s",
        "dns_failure_refresh_rate": {"base_interval": "0.5s", "max_interval": "2s"},
    }


def balancer(service: str) -> Json:
    """Maglev where a replica keeps something of an account; the least busy one where none does."""
    if service == INGEST:
        # A replica that has just started gets its full share after a while: its model is cold.
        slow_start = {"slow_start_window": f"{_SLOW_START_S}s", "min_weight_percent": {"value": 20}}
        return {
            "lb_policy": "LEAST_REQUEST",
            "least_request_lb_config": {"choice_count": 2, "slow_start_config": slow_start},
        }
    # Maglev moves no key of a healthy host when another host dies.
    return {"lb_policy": "MAGLEV"}


OUTLIERS: Json = {
    # Only a host that cannot be reached is put aside; see above.
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 2,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
    "interval": "1s",
    "base_ejection_time": "1s",
    "max_ejection_time": "10s",
    "max_ejection_percent": 50,
}


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address.rsplit(":", 1)[0].strip("[]"))
    except ValueError:
        return False
    return True
