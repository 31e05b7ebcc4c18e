"""The table of who may call what is complete, and closed for all else (C1, C4, C6)."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import replace

import pytest
from google.protobuf.descriptor import FileDescriptor

from services.common import methods
from services.common.context import CallContext, ContextRefused
from services.common.rpc.authorization import INNER_RULES, Rule, check_context, rules_for

_INNER_MODULES = ("edge_service_pb2", "keyvault_service_pb2", "passage_service_pb2")


def _inner_paths() -> set[str]:
    paths = set()
    for name in _INNER_MODULES:
        file: FileDescriptor = importlib.import_module(f"sealcomb.internal.v1.{name}").DESCRIPTOR
        for service in file.services_by_name.values():
            paths |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return paths


def _context(method: str, *, bearer: str = "") -> CallContext:
    issuer = "keyvault" if bearer else "gateway"
    return CallContext(issuer, ("keyvault",), "a", "t", ("read",), (), method, 0.0, 30.0, "r", "job", bearer)


def test_every_inner_method_has_a_rule_and_every_rule_a_method() -> None:
    assert set(INNER_RULES) == _inner_paths()


def test_the_edge_alone_may_call_public_methods_and_only_at_their_owner() -> None:
    for service in methods.SERVICES:
        rules = rules_for(service)
        for path, method in methods.PUBLIC_METHODS.items():
            if method.owner == service:
                assert rules[path].peers == {methods.GATEWAY}
                assert rules[path].needs_context
            else:
                assert path not in rules


def test_replicas_may_call_what_takes_a_context_and_nothing_else_more() -> None:
    """C1: a service's own certificate calls the service only where it was told of replicas."""
    alone, several = rules_for("vectorstore"), rules_for("vectorstore", replicas=True)
    assert alone.keys() == several.keys()
    changed = {path for path in alone if alone[path] != several[path]}
    for path in changed:
        assert several[path] == replace(alone[path], peers=alone[path].peers | {"vectorstore"})
    passages = {path for path in INNER_RULES if "PassageService" in path}
    public = {path for path, method in methods.PUBLIC_METHODS.items() if method.owner == "vectorstore"}
    assert changed == passages | public


def test_only_the_event_watch_and_health_go_without_a_context() -> None:
    free = {
        path
        for service in methods.SERVICES
        for path, rule in rules_for(service).items()
        if not rule.needs_context
    }
    assert free == {
        "/sealcomb.internal.v1.KeyReleaseService/WatchKeyEvents",
        # What the watch would have told, as ids alone.
        "/sealcomb.internal.v1.KeyReleaseService/ListDestroyed",
        # For those accounts alone whose owners took leave for it, each under a permit of its own.
        "/sealcomb.internal.v1.KeyReleaseService/ListReseals",
        # Its grant says who acts: nobody is there to call when long work goes on.
        "/sealcomb.internal.v1.KeyReleaseService/RenewPermit",
        # Nothing is done for a caller: counts, and which tokens have ended.
        "/sealcomb.internal.v1.EdgeService/ReportUsage",
        "/sealcomb.internal.v1.EdgeService/CheckTokens",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }


def test_a_context_for_one_public_method_does_not_open_another() -> None:
    """C5: replay of a context on another method."""
    rule = Rule(frozenset({"gateway"}))
    check_context(
        rule, "/sealcomb.v1.VectorService/Query", "gateway", _context("/sealcomb.v1.VectorService/Query")
    )
    with pytest.raises(ContextRefused):
        check_context(
            rule, "/sealcomb.v1.VectorService/Upsert", "gateway", _context("/sealcomb.v1.VectorService/Query")
        )


def test_inner_methods_want_a_context_of_their_public_origins() -> None:
    path = "/sealcomb.internal.v1.PassageService/PutDocument"
    rule = INNER_RULES[path]
    check_context(rule, path, "ingest", _context("/sealcomb.v1.DocumentService/UploadDocument"))
    with pytest.raises(ContextRefused):
        check_context(rule, path, "ingest", _context("/sealcomb.v1.SearchService/Search"))
    with pytest.raises(ContextRefused):
        check_context(rule, path, "ingest", _context("/sealcomb.v1.DocumentServiceX/UploadDocument"))


def test_a_permit_serves_its_bearer_and_whom_that_one_calls_where_permits_are_taken() -> None:
    path = "/sealcomb.internal.v1.PassageService/PutDocument"
    permit = _context("/sealcomb.v1.DocumentService/UploadDocument", bearer="ingest")
    check_context(INNER_RULES[path], path, "ingest", permit)
    with pytest.raises(ContextRefused):
        check_context(INNER_RULES[path], path, "vectorstore", permit)
    release = "/sealcomb.internal.v1.KeyReleaseService/GetDataKey"
    passed_on = replace(permit, audience=("vectorstore", "keyvault"))
    check_context(INNER_RULES[release], release, "vectorstore", passed_on)
    with pytest.raises(ContextRefused):
        check_context(INNER_RULES[release], release, "gateway", passed_on)
    destroy = "/sealcomb.internal.v1.KeyReleaseService/DestroyResource"
    with pytest.raises(ContextRefused):
        check_context(INNER_RULES[destroy], destroy, "ingest", permit)
    public = "/sealcomb.v1.DocumentService/UploadDocument"
    with pytest.raises(ContextRefused):
        check_context(rules_for("ingest")[public], public, "gateway", permit)


def test_a_permit_to_seal_anew_opens_three_methods_and_writes_and_deletes_nothing() -> None:
    """C4: a service that was taken over gets such permits without a call of the account."""
    opened = set()
    for service in methods.SERVICES:
        for path, rule in rules_for(service).items():
            for bearer, method in methods.RESEALS.items():
                permit = replace(_context(method, bearer=bearer), audience=("vectorstore", "keyvault"))
                for peer in rule.peers if rule.needs_context else ():
                    with contextlib.suppress(ContextRefused):
                        check_context(rule, path, peer, permit)
                        opened.add(path)
    assert opened == {
        "/sealcomb.internal.v1.KeyReleaseService/GetDataKey",
        "/sealcomb.internal.v1.KeyReleaseService/ReportDataKeys",
        # Whether there is a document of an original's name.
        "/sealcomb.internal.v1.PassageService/GetDocumentRecord",
    }
    # The twin: a permit of an upload's job writes.
    path = "/sealcomb.internal.v1.PassageService/PutDocument"
    check_context(
        INNER_RULES[path], path, "ingest", _context("/sealcomb.v1.DocumentService/Upload", bearer="ingest")
    )
