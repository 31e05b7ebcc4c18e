"""Attacks on the release policy, on the database of wrapped keys, and on the audit chain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealcomb_client import audit as client_audit
from services.common import ids
from services.common.context import ContextVerifier
from services.common.errors import SealcombError
from services.common.sealing import DataKey, Identity, open_sealed
from services.keyvault import audit, policy, release_gate
from services.keyvault.asker import Asker
from services.keyvault.kms import file as file_kms
from services.keyvault.kms.file import FileKms
from services.keyvault.ledger import Ledger
from services.keyvault.reconciliation import Reconciliation
from services.keyvault.release_gate import ReleaseGate
from services.keyvault.statements import StatementSigner
from services.keyvault.transaction import Transaction
from tests.attacks.keys.row import Attack, Trial
from tests.keyvault.rig import DELETE, Rig

_RESOURCE = ids.from_bytes(bytes(16))
_SIGNER = StatementSigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@contextmanager
def _rig(trial: Trial, name: str = "keyvault.db") -> Iterator[Rig]:
    rig = Rig(trial.folder / name, FileKms(bytes(range(32))))
    try:
        yield rig
    finally:
        rig.close()


@contextmanager
def _off(trial: Trial, target: Any, name: str, replacement: Any) -> Iterator[None]:
    """The control replaced, in the twin alone."""
    with ExitStack() as stack:
        if trial.twin:
            stack.enter_context(patch.object(target, name, replacement))
        yield


async def _got(
    rig: Rig, asker: Asker, resource: str = _RESOURCE, purpose: str = "collection"
) -> DataKey | None:
    try:
        return await rig.releases.release(asker, resource, purpose)
    except SealcombError:
        return None


async def _other_services_keys(trial: Trial) -> float:
    with _rig(trial) as rig, _off(trial, policy, "peer_refusal", lambda _peer, _purpose: None):
        asker = rig.asker(await rig.account(), "ingest")
        return sum([await _got(rig, asker, ids.new_id()) is not None for _ in range(trial.size)])


async def _mass_decryption(trial: Trial) -> float:
    """How many keys one service gets in one second, by the vault's own clock."""
    off = _off(trial, release_gate.ReleaseGate, "_spend", lambda *_arguments: None)
    with _rig(trial) as rig, off:
        gate, asker = ReleaseGate(rig.releases, rig.clock, 10.0, rig.alarms), rig.asker(await rig.account())
        got = 0
        for _ in range(trial.size):
            with contextlib.suppress(SealcombError):
                await gate.release(asker, _RESOURCE, "collection")
                got += 1
        return got


async def _unasked(trial: Trial) -> float:
    """Keys of connections that a service gets under permits for which nobody called."""
    with _rig(trial) as rig, _off(trial, policy, "work_refusal", lambda *_arguments: None):
        for _ in range(trial.size):
            account = await rig.account()
            for purpose in ("documents", "connection"):
                await rig.releases.release(rig.asker(account, "ingest"), _RESOURCE, purpose)
            await rig.resealing.new_data_keys(rig.asker(account, "gateway"))
        verifier = ContextVerifier("keyvault", {"keyvault": rig.signing_key.public_key()}, rig.clock)
        accounts, got = set(), 0
        while handed_out := await rig.reseals.due("ingest"):
            for due in handed_out:
                worker = Asker("ingest", verifier.verify(due.permit))
                got += await _got(rig, worker, purpose="connection") is not None
                accounts.add(due.account)
        return got if len(accounts) == trial.size else trial.size


async def _foreign_keys(trial: Trial) -> float:
    with _rig(trial) as rig:
        alice, bob = await rig.account(), await rig.account()
        keys = [await rig.releases.release(rig.asker(bob), ids.new_id(), "collection") for _ in range(5)]
        stolen = {key.secret for key in keys}
        resources = [row[0] for row in rig.sql("select resource from data_keys where account = :a", a=bob)]
        got = 0
        with _off(trial, Asker, "account", property(lambda _self: bob)):
            for number in range(trial.size):
                key, resource = keys[number % 5], resources[number % 5]
                for key_id in (key.id, ""):
                    with contextlib.suppress(SealcombError):
                        found = await rig.releases.release(rig.asker(alice), resource, "collection", key_id)
                        got += found.secret in stolen
        return got


async def _foreign_verbs(trial: Trial) -> float:
    """Destroying, disabling and reading what is another's: what changed or was read of it."""
    with _rig(trial) as rig:
        alice, bob = await rig.account(), await rig.account()
        await rig.releases.release(rig.asker(bob), _RESOURCE, "collection")
        _, token = await rig.chain.page(bob, 1, "")
        before = await rig.lines(bob)
        job = ids.new_id()
        await rig.permits.issue(rig.asker(bob, "ingest"), job, 60)
        harm = 0
        with _off(trial, Asker, "account", property(lambda _self: bob)):
            for asker in (rig.asker(alice, method=DELETE),):
                with contextlib.suppress(SealcombError):
                    await rig.releases.destroy(asker, _RESOURCE)
                await rig.permits.end(rig.asker(alice, "ingest"), job)
                with contextlib.suppress(SealcombError):
                    await rig.vault.disable(asker)
        with contextlib.suppress(SealcombError):
            harm += len((await rig.chain.page(alice, 50, token))[0]) > 50
        harm += await rig.store.read(lambda tx: tx.is_destroyed(bob, _RESOURCE))
        permit = await rig.store.read(lambda tx: tx.permit(bob, job))
        harm += permit is None or permit.ended
        record = await rig.store.read(lambda tx: tx.account(bob))
        harm += record is None or record.state.value != "enabled"
        harm += (await rig.lines(bob))[: len(before)] != before
        return harm


async def _swapped_wrappings(trial: Trial) -> float:
    """Every wrapped key in the row of every other: how many then open."""
    loose = {"_wrapping_identity": lambda *_arguments: Identity("", "", "")}
    with _rig(trial) as rig, ExitStack() as stack:
        for name, value in loose.items():
            stack.enter_context(_off(trial, file_kms, name, value))
        account = await rig.account()
        places = [ids.new_id() for _ in range(trial.size)]
        for place in places:
            await rig.releases.release(rig.asker(account), place, "collection")
        rows = dict(rig.sql("select resource, wrapped from data_keys"))
        opened = 0
        for source, target in itertools.permutations(places, 2):
            rig.sql("update data_keys set wrapped = :w where resource = :r", w=rows[source], r=target)
            opened += await _got(rig, rig.asker(account), target) is not None
            rig.sql("update data_keys set wrapped = :w where resource = :r", w=rows[target], r=target)
        return opened


async def _after_disable(trial: Trial) -> float:
    with _rig(trial) as rig:
        asker = rig.asker(await rig.account())
        await rig.releases.release(asker, _RESOURCE, "collection")
        await rig.vault.disable(asker)
        with _off(trial, policy, "account_refusal", lambda _account: None):
            return sum([await _got(rig, asker) is not None for _ in range(trial.size)])


async def _unrecorded(trial: Trial) -> float:
    """Keys that left while no record can be written."""

    def fail(*_arguments: Any) -> None:
        raise SealcombError("the audit disk is gone")

    with _rig(trial) as rig:
        asker = rig.asker(await rig.account())
        await rig.releases.release(asker, _RESOURCE, "collection")
        with patch.object(Transaction, "append", (lambda *_arguments: None) if trial.twin else fail):
            return sum([await _got(rig, asker) is not None for _ in range(trial.size)])


async def _text_in_records(trial: Trial) -> float:
    """Records that hold a caller's text."""
    with _rig(trial) as rig, _off(trial, audit, "_clean", lambda act: act):
        account = await rig.account()
        for number in range(trial.size):
            text = f"canary {number} of somebody's text"
            asker = rig.asker(account, token_id=text, request_id=text, method=f"/{text}")
            await rig.releases.release(asker, _RESOURCE, "collection")
        return sum("canary" in line for line in await rig.lines(account))


async def _changed_exports(trial: Trial) -> float:
    """Exports with one record changed, left out or moved that still verify."""
    with _rig(trial) as rig:
        account = await rig.account()
        for _ in range(12):
            await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
        lines = [line async for line in rig.checkpoints.export(account)]
        key = rig.statements.public_pem.encode()
        with _off(trial, client_audit, "_next", lambda *_arguments: client_audit.checkpoint_head(lines[-1])):
            passed = 0
            for number in range(trial.size):
                at, other = number % 12, (number * 7 + 1) % 12
                changed = list(lines)
                if number % 3 == 0:
                    changed[at] = changed[at].replace("vectorstore", "gateway", 1).replace('"ok"', '"OK"')
                elif number % 3 == 1:
                    del changed[at]
                else:
                    changed[at], changed[other] = changed[other], changed[at]
                if changed != lines:
                    with contextlib.suppress(client_audit.ChainBroken):
                        client_audit.verify_chain(changed, public_key=key)
                        passed += 1
            return passed


async def _two_keys_for_one(trial: Trial) -> float:
    """Keys beyond the one, made by first askers who come together."""
    look = Transaction.data_key
    blind = lambda self, wanted: look(self, wanted) if wanted.key_id else None  # noqa: E731
    with _rig(trial) as rig, _off(trial, Transaction, "data_key", blind):
        asker = rig.asker(await rig.account())
        if trial.twin:
            rig.sql("drop index data_keys_current")
        await asyncio.gather(*(_got(rig, asker) for _ in range(trial.size)))
        return float(rig.sql("select count(*) from data_keys")[0][0]) - 1


@asynccontextmanager
async def _kept(trial: Trial) -> AsyncIterator[Rig]:
    """A vault with its ledger; in the twin without."""
    with _rig(trial, "data/keyvault.db") as rig:
        if trial.twin:
            yield rig
            return
        ledger = Ledger(trial.folder / "destroyed.ledger", _SIGNER)
        try:
            await Reconciliation(rig.store, ledger, rig.clock).at_start(accept_older=True)
            rig.store.keep_ledger(ledger)
            yield rig
        finally:
            ledger.close()


async def _old_database(trial: Trial) -> float:
    """Accounts that an old copy of the database brings back."""
    data = trial.folder / "data"
    data.mkdir()
    async with _kept(trial) as rig:
        accounts = [await rig.account() for _ in range(trial.size)]
        for account in accounts:
            await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
    shutil.copytree(data, trial.folder / "copy")
    async with _kept(trial) as rig:
        for account in accounts:
            await rig.vault.destroy(rig.asker(account))
    shutil.rmtree(data)
    shutil.move(trial.folder / "copy", data)
    async with _kept(trial) as rig:
        return sum([await _got(rig, rig.asker(account)) is not None for account in accounts])


async def _early_destruction(trial: Trial) -> float:
    """Accounts destroyed before their deletion is due."""
    with _rig(trial) as rig:
        accounts = [await rig.account() for _ in range(trial.size)]
        for account in accounts:
            await rig.deletions.schedule(rig.asker(account), 7)
        rig.clock.time_s += (8 if trial.twin else 6.99) * 86_400
        await rig.deletions.destroy_due()
        states = rig.sql("select state from accounts")
        return float(sum(state == "destroyed" for (state,) in states))


async def _forged_handles(trial: Trial) -> float:
    """Account keys of an attacker's own, put into the database, that are then used."""
    own = FileKms(bytes(range(32)) if trial.twin else bytes(range(1, 33)))
    with _rig(trial) as rig:
        used = 0
        for _ in range(trial.size):
            account = await rig.account()
            forged = await own.new_key(account, 1)
            rig.sql("update account_keys set handle = :h where account = :a", h=forged.handle, a=account)
            used += await _got(rig, rig.asker(account)) is not None
        return used


def _telling(key: DataKey, place: Identity, sealed: bytes) -> bytes:
    """Opening as a library alone would: each failure with words of its own."""
    if len(sealed) < 19 or sealed[:3] != b"SC\x01":
        raise SealcombError("this is no sealed object")
    if ids.from_bytes(sealed[3:19]) != key.id:
        raise SealcombError("this is another key's")
    return open_sealed(key, place, sealed)


async def _reasons(trial: Trial) -> float:
    """Different answers beyond the one, over all ways in which a wrapped key can be wrong."""
    with _rig(trial) as rig, _off(trial, file_kms, "open_sealed", _telling):
        account = await rig.account()
        await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
        wrapped = rig.sql("select wrapped from data_keys")[0][0]
        answers = set()
        for number in range(trial.size):
            changed = bytearray(wrapped)
            changed[number * 7 % len(wrapped)] ^= 1 << number % 8
            if number % 5 == 0:
                changed = changed[: number % len(wrapped)]
            rig.sql("update data_keys set wrapped = :w", w=bytes(changed))
            try:
                await rig.releases.release(rig.asker(account), _RESOURCE, "collection")
            except SealcombError as error:
                answers.add((type(error), error.message, error.reason))
        return len(answers) - 1


ATTACKS = [
    Attack("C4", "keys of another service's purpose, real contexts", 1000, 50, _other_services_keys),
    Attack("C4", "keys a service gets at once, rate 10/s", 1000, 100, _mass_decryption, bound=40),
    Attack("C4", "keys of connections under permits to seal anew", 200, 10, _unasked),
    Attack("D1", "another account's keys, by id and by resource", 1000, 50, _foreign_keys),
    Attack("D2", "another account's resource, permit, state, log", 1, 1, _foreign_verbs),
    Attack("D8", "wrapped keys in each other's rows that open", 20, 6, _swapped_wrappings),
    Attack("D9", "account keys of an attacker's own that are used", 200, 10, _forged_handles),
    Attack("D14", "keys after the answer to a disable", 1000, 50, _after_disable),
    Attack("D17", "keys that leave while nothing can be recorded", 1000, 50, _unrecorded),
    Attack("D18", "records with a caller's text", 1000, 50, _text_in_records),
    Attack("D19", "changed exports that verify", 1000, 60, _changed_exports),
    Attack("D21", "accounts destroyed before they are due", 90, 10, _early_destruction),
    Attack("D22", "second keys from first askers at once", 200, 20, _two_keys_for_one),
    Attack("D23", "answers that tell one failure from another", 500, 60, _reasons),
    Attack("D26", "deleted accounts back with an old database", 100, 5, _old_database),
]
