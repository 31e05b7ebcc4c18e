"""Whether what is stored is whole, as far as can be said without a key.

Audit chains are followed from their first record to their end, the ledger line by line; of every
collection the log must be whole from its snapshot on, and that snapshot's object must be there. What is
sealed is not opened: a byte that was changed inside an object shows when its owner reads it, as
DATA_LOSS. Runs beside a busy installation.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from services.common.errors import SealcombError
from services.common.methods import KEYVAULT, SERVICES
from services.common.objects import open_store
from services.keyvault.chain import AuditChain
from services.keyvault.ledger import Ledger, LedgerDamaged
from services.keyvault.statements import StatementSigner
from services.standalone.admin import contents, store
from services.standalone.admin.managed import Managed


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of thing that was looked at: how many, what is wrong with which, and what was left out."""

    what: str
    looked_at: int
    faults: tuple[str, ...] = ()
    note: str = ""


async def verify(managed: Managed, account: str = "") -> list[Check]:
    """All checks, of one account or of all. Raises DatabaseAway, and SealcombError where objects are away."""
    databases = _databases(managed)
    if databases.faults:
        # The rest would only say the same again.
        return [databases]
    return [
        databases,
        await _audit(managed, account),
        _ledger(managed),
        _collections(managed, account),
        _originals(managed, account),
    ]


def _databases(managed: Managed) -> Check:
    faults = []
    for service in SERVICES:
        try:
            found = store.schema_of(managed.of(service).database_url, service)
        except store.DatabaseAway as error:
            faults.append(f"{service}: {error}")
        else:
            if found.revision != found.head:
                faults.append(f"{service}: its schema is {found.revision}, not {found.head}")
    return Check("databases", len(SERVICES), tuple(faults))


async def _audit(managed: Managed, account: str) -> Check:
    keyvault = contents.audit_store(managed.keyvault.database_url)
    try:
        chain = AuditChain(keyvault)
        every = await keyvault.read(lambda tx: tx.account_ids())
        found = [one for one in every if account in ("", one)]
        bad = {one: await chain.first_bad(one) for one in found}
    finally:
        keyvault.close()
    faults = (f"{one}: does not hold at record {at}" for one, at in bad.items() if at is not None)
    return Check("audit chains", len(found), tuple(faults))


def _ledger(managed: Managed) -> Check:
    path = managed.keyvault.ledger
    if path is None or not path.exists():
        return Check("ledger lines", 0, note="there is no ledger here")
    try:
        ledger = Ledger(path, StatementSigner.from_file(managed.keyvault.context_key_file))
    except LedgerDamaged as error:
        if isinstance(error.__context__, BlockingIOError):
            return Check("ledger lines", 0, note=f"{KEYVAULT} holds it, and proved it at its start")
        return Check("ledger lines", 1, (str(error),))
    except (OSError, ValueError) as error:
        return Check("ledger lines", 0, note=f"not looked at: {error}")
    try:
        return Check("ledger lines", sum(1 for _ in ledger.entries()))
    finally:
        ledger.close()


def _collections(managed: Managed, account: str) -> Check:
    # A snapshot may be replaced between the two looks; what is missing twice is missing.
    for last in (False, True):
        logs = contents.logs(managed.vectorstore.database_url, account)
        present = _objects(managed.vectorstore.objects_url, account)
        faults = [f"{log.collection}: {fault}" for log in logs if (fault := log_fault(log, present))]
        if last or not faults:
            return Check("collections", len(logs), tuple(faults))
    raise AssertionError("the second look is the last")


def log_fault(log: contents.Log, present: AbstractSet[str]) -> str:
    """What is wrong with a log, given which objects there are; empty: nothing."""
    first = log.first_lsn or log.head_lsn + 1
    if log.records and (log.last_lsn != log.head_lsn or log.head_lsn - first + 1 != log.records):
        return "records are missing from its log"
    starts = [lsn for lsn, key in log.snapshots.items() if key in present]
    if first > 1 and not any(first - 1 <= lsn <= log.head_lsn for lsn in starts):
        return "the snapshot that its log goes on from is not there"
    return ""


def _originals(managed: Managed, account: str) -> Check:
    # Those that are removed meanwhile are gone from the second look as well.
    for last in (False, True):
        wanted = contents.originals(managed.ingest.database_url, account)
        missing = sorted(set(wanted) - _objects(managed.ingest.objects_url, account))
        if last or not missing:
            return Check(
                "originals of ingestions", len(wanted), tuple(f"{key}: not there" for key in missing)
            )
    raise AssertionError("the second look is the last")


def _objects(url: str, account: str) -> set[str]:
    try:
        return set(open_store(url).list(f"{account}/" if account else ""))
    except (SealcombError, OSError, ValueError) as error:
        raise store.DatabaseAway(f"the objects cannot be listed: {error}") from None
