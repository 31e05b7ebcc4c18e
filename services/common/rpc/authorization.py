"""Who may call which inner method: the one table that the server interceptor checks.

Deny by default: a method without a rule is refused, and so is a peer that its rule does not name.
Public methods are called by the edge alone, under their own context; inner methods name their
peers and the public services under whose contexts they may be called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.common import methods
from services.common.context import CallContext, ContextRefused

_INNER = "/sealcomb.internal.v1."
_DOCUMENTS = "sealcomb.v1.DocumentService"
_SEARCH = "sealcomb.v1.SearchService"
_ACCOUNTS = "sealcomb.v1.AccountService"
_TOKENS = "sealcomb.v1.TokenService"
_SOURCES = "sealcomb.v1.SourceService"
_INGESTIONS = "sealcomb.v1.IngestionService"
_KEY_USERS = frozenset(
    {
        "sealcomb.v1.CollectionService",
        "sealcomb.v1.VectorService",
        _DOCUMENTS,
        _SEARCH,
        _ACCOUNTS,
        _TOKENS,
        _SOURCES,
        _INGESTIONS,
    }
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One method's rule: exact peers, and whether and under which public services' contexts.

    `permits`: under permits as well; `reseals`: also under those to seal anew, for which nobody called.
    """

    peers: frozenset[str]
    needs_context: bool = True
    origins: frozenset[str] = frozenset()
    permits: bool = False
    reseals: bool = False


def _inner(
    service: str,
    method: str,
    peers: tuple[str, ...],
    origins: frozenset[str],
    *,
    permits: bool = False,
    reseals: bool = False,
) -> tuple[str, Rule]:
    return f"{_INNER}{service}/{method}", Rule(frozenset(peers), True, origins, permits, reseals)


_V, _I, _G = methods.VECTORSTORE, methods.INGEST, methods.GATEWAY
_K = "KeyReleaseService"
_P = "PassageService"
_DOCS = frozenset({_DOCUMENTS})
_WORK = frozenset({_DOCUMENTS, _SOURCES, _INGESTIONS})

INNER_RULES: dict[str, Rule] = dict(
    [
        _inner(_K, "GetDataKey", (_V, _I, _G), _KEY_USERS, permits=True, reseals=True),
        _inner(
            _K,
            "DestroyResource",
            (_V, _I),
            frozenset({"sealcomb.v1.CollectionService", _DOCUMENTS, _SOURCES}),
        ),
        _inner(
            _K,
            "ReportDataKeys",
            (_V, _I),
            frozenset({"sealcomb.v1.CollectionService", _DOCUMENTS}),
            permits=True,
            reseals=True,
        ),
        (f"{_INNER}{_K}/ListReseals", Rule(frozenset({_V, _I}), needs_context=False)),
        _inner(_K, "ProvisionAccount", (_G,), frozenset({_ACCOUNTS})),
        _inner(_K, "SetAccountSuspended", (_G,), frozenset({_ACCOUNTS})),
        _inner(_K, "DestroyAccount", (_G,), frozenset({_ACCOUNTS})),
        _inner(_K, "RecordEvent", (_G,), frozenset({_ACCOUNTS, _TOKENS})),
        _inner(_K, "IssuePermit", (_I,), _WORK),
        (f"{_INNER}{_K}/RenewPermit", Rule(frozenset({_I}), needs_context=False)),
        _inner(_K, "EndPermit", (_I,), _WORK, permits=True),
        (f"{_INNER}{_K}/ListDestroyed", Rule(frozenset({_V, _I}), needs_context=False)),
        (f"{_INNER}{_K}/WatchKeyEvents", Rule(frozenset({_V, _I, _G}), needs_context=False)),
        _inner(_P, "ResolveCollection", (_I,), frozenset({_DOCUMENTS, _SEARCH, _INGESTIONS}), permits=True),
        _inner(_P, "PutDocument", (_I,), _DOCS, permits=True),
        _inner(_P, "GetDocumentRecord", (_I,), _DOCS, permits=True, reseals=True),
        _inner(_P, "ListDocumentRecords", (_I,), _DOCS),
        _inner(_P, "DeleteDocumentRecord", (_I,), _DOCS, permits=True),
        (f"{_INNER}EdgeService/ReportUsage", Rule(frozenset({_V}), needs_context=False)),
        (f"{_INNER}EdgeService/CheckTokens", Rule(frozenset({_I}), needs_context=False)),
        _inner(_P, "SearchPassages", (_I,), frozenset({_SEARCH})),
    ]
)


def rules_for(service: str, *, replicas: bool = False) -> Mapping[str, Rule]:
    """The rules of one service's server: its public methods, the inner ones, and health.

    With `replicas` processes of the service itself may pass calls on to it.
    """
    edge = frozenset({methods.GATEWAY})
    rules = {path: Rule(edge) for path, method in methods.EDGE_METHODS.items() if method.owner == service}
    rules |= INNER_RULES
    if replicas:
        # Each under the context that it came with.
        for path, rule in rules.items():
            if rule.needs_context and _owner(path) == service:
                rules[path] = replace(rule, peers=rule.peers | {service})
    for method in ("Check", "Watch"):
        rules[f"/grpc.health.v1.Health/{method}"] = Rule(frozenset(methods.SERVICES), needs_context=False)
    return rules


def _owner(path: str) -> str:
    if path in methods.EDGE_METHODS:
        return methods.EDGE_METHODS[path].owner
    return methods.VECTORSTORE if path.startswith(f"{_INNER}{_P}/") else ""


def check_context(rule: Rule, path: str, peer: str, context: CallContext) -> None:
    """Raises ContextRefused unless the context, already verified, may be used by the peer here."""
    if context.bearer:
        # Who holds it, or whom it was passed on to, such as vectorstore asking for a collection's key.
        if not rule.permits or peer not in (context.bearer, *context.audience):
            raise ContextRefused("a permit is not for this peer and method")
        if context.method in methods.RESEALS.values() and not rule.reseals:
            raise ContextRefused("a permit to seal anew is not for this method")
        return
    if not rule.origins:
        if context.method != path:
            raise ContextRefused("another method")
        return
    service = context.method.strip("/").split("/")[0]
    if service not in rule.origins:
        raise ContextRefused("another origin")
