"""The release policy is one table: each purpose has one peer, and all else is refused."""

from __future__ import annotations

from itertools import product

import pytest

from services.common import ids, methods
from services.common.errors import InvalidArgument
from services.keyvault import policy
from services.keyvault.policy import PURPOSES, PurposeRefused, check_names, destroy_refusal, peer_refusal

_ALLOWED = {
    ("vectorstore", "catalog"),
    ("vectorstore", "collection"),
    ("ingest", "documents"),
    ("ingest", "connection"),
    ("gateway", "profile"),
    ("keyvault", "pages"),
    ("keyvault", "handles"),
}
_DELETE = "/sealcomb.v1.CollectionService/DeleteCollection"


def test_each_peer_has_its_own_purposes_and_no_other() -> None:
    for peer, purpose in product([*methods.SERVICES, "", "Vectorstore", "vectorstore "], PURPOSES):
        refusal = peer_refusal(peer, purpose)
        assert (refusal is None) == ((peer, purpose) in _ALLOWED)
        assert refusal is None or isinstance(refusal, PurposeRefused)


@pytest.mark.parametrize(
    ("resource", "purpose", "field"),
    [
        (ids.from_bytes(bytes(16)), "", "purpose"),
        (ids.from_bytes(bytes(16)), "Collection", "purpose"),
        (ids.from_bytes(bytes(16)), "catalog", "resource"),
        ("catalog", "collection", "resource"),
        ("profile", "catalog", "resource"),
        ("", "collection", "resource"),
        ("my secret collection", "collection", "resource"),
        ("../x", "documents", "resource"),
        ("a" * 10_000, "collection", "resource"),
    ],
)
def test_unknown_purposes_and_odd_resources_are_named(resource: str, purpose: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_names(resource, purpose)
    assert [violation.field for violation in caught.value.fields] == [field]


def test_destruction_needs_the_owner_the_method_and_only_keys_of_ones_own() -> None:
    both = frozenset({"collection", "documents"})
    assert destroy_refusal("vectorstore", _DELETE, both) is None
    assert destroy_refusal("vectorstore", _DELETE, frozenset()) is None
    refused = [
        ("gateway", _DELETE, both),
        ("ingest", _DELETE, both),
        ("ingest", _DELETE, frozenset({"documents"})),
        ("vectorstore", _DELETE, frozenset({"connection"})),
        ("vectorstore", "/sealcomb.v1.CollectionService/ListCollections", both),
        ("vectorstore", "/sealcomb.v1.VectorService/Query", frozenset()),
        ("vectorstore", "", both),
    ]
    for peer, method, purposes in refused:
        assert isinstance(destroy_refusal(peer, method, purposes), PurposeRefused)


def test_ingest_destroys_connections_alone_and_for_their_own_service_alone() -> None:
    disconnect = "/sealcomb.v1.SourceService/Disconnect"
    connection = frozenset({"connection"})
    assert destroy_refusal("ingest", disconnect, connection) is None
    for peer, method, purposes in (
        ("ingest", disconnect, frozenset({"documents"})),
        ("ingest", _DELETE, connection),
        ("vectorstore", disconnect, frozenset({"collection"})),
        ("ingest", "/sealcomb.v1.SourceService/ListConnections", connection),
    ):
        assert isinstance(destroy_refusal(peer, method, purposes), PurposeRefused)


def test_the_destroying_methods_exist_and_want_a_scope_that_changes_things() -> None:
    for paths in policy._DESTROYERS.values():
        for path in paths:
            assert methods.PUBLIC_METHODS[path].scope in (methods.Scope.WRITE, methods.Scope.SOURCES)
