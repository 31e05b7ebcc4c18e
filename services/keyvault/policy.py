"""Which peer may have which data keys, and when none may: the release policy in one place.

Deny by default: a purpose that is not in the table does not exist, and it belongs to one peer.
The account is never a parameter: it comes from the verified call context.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common import ids, methods
from services.common.errors import (
    FailedPrecondition,
    KeyDisabled,
    NotFound,
    PermissionDenied,
    SealcombError,
    invalid,
)
from services.keyvault.records import AccountRecord, KeyState, PermitRecord


@dataclass(frozen=True, slots=True)
class Purpose:
    """Whose keys these are, and the one resource they are for; empty: any resource id."""

    peer: str
    resource: str = ""


PURPOSES = {
    "catalog": Purpose(methods.VECTORSTORE, "catalog"),
    "collection": Purpose(methods.VECTORSTORE),
    "documents": Purpose(methods.INGEST),
    "connection": Purpose(methods.INGEST),
    "profile": Purpose(methods.GATEWAY, "profile"),
    # Page tokens of keyvault itself.
    "pages": Purpose(methods.KEYVAULT, "pages"),
    # Seals the handles of keys that accounts brought along.
    "handles": Purpose(methods.KEYVAULT, "handles"),
}

# Keys whose resource is a collection.
_OF_COLLECTIONS = frozenset({"collection", "documents"})

# Whose resources a peer may destroy, by the purposes of their keys: a collection takes its documents along.
DESTROYS = {
    methods.VECTORSTORE: frozenset({"collection", "documents"}),
    methods.INGEST: frozenset({"connection"}),
}
# Destruction is asked for by these public methods alone, so that a reader's context never reaches it.
_DESTROYERS = {
    methods.VECTORSTORE: frozenset(
        {"/sealcomb.v1.CollectionService/CreateCollection", "/sealcomb.v1.CollectionService/DeleteCollection"}
    ),
    # Beginning and completing clear away connections that were never completed.
    methods.INGEST: frozenset(
        {
            "/sealcomb.v1.SourceService/BeginConnection",
            "/sealcomb.v1.SourceService/CompleteConnection",
            "/sealcomb.v1.SourceService/Disconnect",
        }
    ),
}


@dataclass(frozen=True, slots=True)
class Resealer:
    """The public method by which a peer seals data anew, and the purposes of the keys that it replaces."""

    method: str
    purposes: frozenset[str]


RESEALERS = {
    methods.VECTORSTORE: Resealer(methods.RESEALS[methods.VECTORSTORE], frozenset({"collection"})),
    methods.INGEST: Resealer(methods.RESEALS[methods.INGEST], frozenset({"documents"})),
}
# What a permit to seal anew opens at all: no connections, no names of tokens.
_OF_RESEALS = frozenset({"catalog", "collection", "documents"})


class PurposeRefused(PermissionDenied):
    """The peer asked for keys that are not its own."""

    reason = "PURPOSE_REFUSED"

    def __init__(self) -> None:
        super().__init__("this peer may not use keys of this purpose")


class KeyUnknown(NotFound):
    """The account has no such data key; the answer for a foreign and a destroyed one too."""

    reason = "KEY_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("there is no such data key")


class PermitEnded(PermissionDenied):
    """The permit's job has ended, or the account was suspended or its key disabled meanwhile."""

    reason = "PERMIT_ENDED"

    def __init__(self) -> None:
        super().__init__("the permit has ended; begin the work again")


class AccountUnknown(NotFound):
    """There is no such account, or it was destroyed."""

    reason = "ACCOUNT_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("there is no such account")


class KeyPendingDeletion(FailedPrecondition):
    """The account's key is to be destroyed."""

    reason = "KEY_PENDING_DELETION"

    def __init__(self) -> None:
        super().__init__("the key is scheduled for deletion; cancel that first")


class AccountSuspended(FailedPrecondition):
    """The account is suspended."""

    reason = "ACCOUNT_SUSPENDED"

    def __init__(self) -> None:
        super().__init__("the account is suspended; ask the operator to resume it")


# What `account_refusal` answers: nothing of the account's keys stays in memory then.
OFF = (AccountUnknown, AccountSuspended, KeyDisabled)


def check_names(resource: str, purpose: str) -> None:
    """Raises InvalidArgument for a purpose that does not exist or a resource of another form."""
    found = PURPOSES.get(purpose)
    if found is None:
        raise invalid("purpose", "is not known")
    if not (resource == found.resource if found.resource else ids.is_id(resource)):
        raise invalid("resource", "is not a resource of this purpose")


def peer_refusal(peer: str, purpose: str) -> SealcombError | None:
    """Why the peer may not have keys of a known purpose, if so."""
    return None if PURPOSES[purpose].peer == peer else PurposeRefused()


def work_refusal(method: str, bearer: str, purpose: str) -> SealcombError | None:
    """Why a permit for work of this method may not have keys of a known purpose, if so."""
    reseals = bearer and method in methods.RESEALS.values()
    return PurposeRefused() if reseals and purpose not in _OF_RESEALS else None


def report_refusal(peer: str, method: str, purpose: str) -> SealcombError | None:
    """Why the peer may not report what it found sealed under keys of a known purpose, if so."""
    own = RESEALERS.get(peer)
    allowed = own is not None and purpose in own.purposes and method == own.method
    return None if allowed else PurposeRefused()


def destroy_refusal(peer: str, method: str, purposes: frozenset[str]) -> SealcombError | None:
    """Why the peer may not destroy a resource with keys of these purposes, if so."""
    own = DESTROYS.get(peer, frozenset())
    return None if own and purposes <= own and method in _DESTROYERS[peer] else PurposeRefused()


def known(account: AccountRecord | None) -> AccountRecord:
    """The account; AccountUnknown where there is none or it was destroyed."""
    if account is None or account.state is KeyState.DESTROYED:
        raise AccountUnknown
    return account


def account_refusal(account: AccountRecord | None) -> SealcombError | None:
    """Why no key of the account may be used now, if so."""
    if account is None or account.state is KeyState.DESTROYED:
        return AccountUnknown()
    if account.suspended:
        return AccountSuspended()
    if account.state is not KeyState.ENABLED:
        return KeyDisabled()
    return None


def scope_refusal(collection_ids: tuple[str, ...], resource: str, purpose: str) -> SealcombError | None:
    """Why a permit for certain collections may not have this key, if so."""
    if collection_ids and purpose in _OF_COLLECTIONS and resource not in collection_ids:
        return KeyUnknown()
    return None


def permit_refusal(
    permit: PermitRecord | None, peer: str, now_us: int, audience: tuple[str, ...] = ()
) -> SealcombError | None:
    """Why a permit may not be used now by a peer, if so.

    It may be used by the peer that it was issued to, and by those of its audience, whom that peer calls.
    """
    if permit is None or permit.ended or now_us >= permit.expires_us:
        return PermitEnded()
    return None if peer in (permit.peer, *audience) else PermitEnded()
