"""What NetworkPolicies allow, evaluated as their specification says: the union of all that select a pod.

Who is written here: a pod by its labels and its namespace's, or an address outside of the cluster.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from tests.deploy.rendered import Json

NAMESPACE = "sealcomb"


@dataclass(frozen=True)
class Pod:
    """A pod."""

    labels: dict[str, str] = field(hash=False)
    namespace: str = NAMESPACE


@dataclass(frozen=True)
class Outside:
    """An address that is no pod's."""

    address: str


Party = Pod | Outside


def allowed(policies: list[Json], source: Party, target: Party, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is let out at the source and in at the target."""
    return passes(policies, "Egress", source, target, port, protocol) and passes(
        policies, "Ingress", target, source, port, protocol
    )


def passes(
    policies: list[Json], direction: str, at: Party, peer: Party, port: int, protocol: str = "TCP"
) -> bool:
    """Whether what selects a pod lets a connection pass in one direction, `Ingress` or `Egress`."""
    if isinstance(at, Outside) or at.namespace != NAMESPACE:
        return True  # not ours to decide
    selecting = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], at.labels)
    ]
    if not selecting:
        return True  # a pod that no policy selects is open
    peers = "from" if direction == "Ingress" else "to"
    return any(
        _has_port(rule.get("ports"), port, protocol) and _has_peer(rule.get(peers), peer)
        for spec in selecting
        for rule in spec.get(direction.lower(), [])
    )


def _has_port(ports: list[Json] | None, port: int, protocol: str) -> bool:
    if not ports:
        return True
    return any(entry.get("protocol", "TCP") == protocol and port in _range(entry) for entry in ports)


def _range(entry: Json) -> range:
    first = int(entry.get("port", 0))
    return range(first, int(entry.get("endPort", first or 65535)) + 1)


def _has_peer(peers: list[Json] | None, peer: Party) -> bool:
    return not peers or any(_is_peer(entry, peer) for entry in peers)


def _is_peer(entry: Json, peer: Party) -> bool:
    if "ipBlock" in entry:
        return isinstance(peer, Outside) and _in_block(entry["ipBlock"], peer.address)
    if isinstance(peer, Outside):
        return False
    names = {"kubernetes.io/metadata.name": peer.namespace}
    in_namespace = (
        _selects(entry["namespaceSelector"], names)
        if "namespaceSelector" in entry
        else peer.namespace == NAMESPACE
    )
    return in_namespace and _selects(entry.get("podSelector", {}), peer.labels)


def _in_block(block: Json, text: str) -> bool:
    address = ipaddress.ip_address(text)

    def within(cidr: str) -> bool:
        return address in ipaddress.ip_network(cidr)

    return within(block["cidr"]) and not any(within(cidr) for cidr in block.get("except", []))


def _selects(selector: Json, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", "this evaluator knows In alone"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
