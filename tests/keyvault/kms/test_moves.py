"""Accounts move to keys that they bring, and back, while their data is in use (D1, D8, D20, F9)."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sealcomb_client.audit import verify_chain
from services.common import ids
from services.common.clock import SystemClock
from services.common.errors import Aborted, InvalidArgument, KeyDisabled, SealcombError
from services.common.sealing import DataKey
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.faults import KmsAccessDenied, KmsKeyDisabled, KmsKeyInvalid, KmsUnavailable
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.guard import GuardedKms
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.moves import Moves
from services.keyvault.retirement import Retirements
from services.keyvault.vault import Vault
from tests.keyvault.kms.aws_fake import AwsFake
from tests.keyvault.kms.aws_states import Role
from tests.keyvault.kms.conftest import aws_client
from tests.keyvault.kms.peers import Bao, Token
from tests.keyvault.kms.test_pkcs11 import generate
from tests.keyvault.rig import Rig

_CUSTOMER = "999988887777"
_ROLE = f"arn:aws:iam::{_CUSTOMER}:role/sealcomb"
_HANDLES = DataKey(ids.new_id(), secrets.token_bytes(32))


class Home(Rig):
    """A keyvault whose accounts begin with keys in a file and may bring their own."""

    def provide(self, *others: Any, default: Any = None, **values: Any) -> None:
        """Adds KMSs."""
        clock = SystemClock()
        guarded = [GuardedKms(kms, clock, 20.0, 10_000) for kms in others]
        self.registry = KmsRegistry(default or self.kms, guarded)
        self.registry.seal_handles_with(_HANDLES)
        self.vault = Vault(self.store, self.registry, self.events, self.clock, self.completion)
        self.releases._kms = self.registry
        self.moves = Moves(self.store, self.registry, clock, **values)

    async def filled(self, count: int) -> tuple[str, dict[str, DataKey]]:
        """An account with some data keys."""
        account = await self.account()
        resources = [ids.new_id() for _ in range(count)]
        return account, {resource: await self.data_key(account, resource) for resource in resources}

    async def data_key(self, account: str, resource: str) -> DataKey:
        """A release as vectorstore asks for it."""
        return await self.releases.release(self.asker(account), resource, "collection")

    async def opens(self, account: str, keys: dict[str, DataKey]) -> bool:
        """Whether every data key is still what it was."""
        return {resource: await self.data_key(account, resource) for resource in keys} == keys

    async def bring(self, account: str, provider: str, key: str, role: str = "") -> Any:
        """Binds a key as the account's administrator does."""
        return await self.moves.bind(self.admin(account), provider, KeyReference(key, role))

    def admin(self, account: str) -> Any:
        """Somebody with the keys scope."""
        return self.asker(account, "gateway", "/sealcomb.v1.KeyService/BindKey")

    def staged(self) -> list[Any]:
        """What a move keeps until it is done."""
        return self.sql("select id from rewrapped") + self.sql("select account from key_moves")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """A keyvault with its file alone."""
    home = Home(tmp_path / "keyvault.db", FileKms(bytes(range(32))))
    home.provide()
    yield home
    await home.moves.close()
    await home.registry.close()
    home.close()


@dataclass
class Customer:
    """A customer's key in AWS, for one account."""

    fake: AwsFake
    arn: str

    def permit(self, account: str) -> None:
        """The customer's role lets keyvault in for this account."""
        self.fake.states.roles[_ROLE] = Role(account)
        self.fake.states.granted.add((_ROLE, self.arn))


@pytest.fixture
def customer(fake: AwsFake, home: Home) -> Customer:
    """The key, not yet permitted to anybody; the keyvault can reach AWS."""
    home.provide(AwsKms(aws_client(fake)), batch=8)
    return Customer(fake, fake.states.add_key(_CUSTOMER).arn)


async def _until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)


async def _brings(provider: str, home: Home, account: str, request: pytest.FixtureRequest) -> tuple[str, str]:
    if provider == "aws":
        fake: AwsFake = request.getfixturevalue("fake")
        home.provide(AwsKms(aws_client(fake)))
        key = fake.states.add_key(_CUSTOMER).arn
        Customer(fake, key).permit(account)
        return key, _ROLE
    if provider == "transit":
        bao: Bao = request.getfixturevalue("bao")
        home.provide(bao.kms())
        bao.ask("POST", f"transit/keys/mine-{account}", derived=True)
        return f"transit/mine-{account}", ""
    token: Token = request.getfixturevalue("token")
    kms = token.kms()
    generate(kms, f"mine-{account}")
    home.provide(kms)
    return f"mine-{account}", ""


@pytest.mark.parametrize("provider", ["aws", "transit", "pkcs11"])
async def test_an_account_moves_to_its_own_key_is_rotated_there_and_moves_back(
    home: Home, request: pytest.FixtureRequest, provider: str
) -> None:
    """D8, D20: every data key opens all along, and nothing stays under the old key."""
    account, keys = await home.filled(20)
    before = home.sql("select handle from account_keys")[0][0]
    key, role = await _brings(provider, home, account, request)
    moved = await home.bring(account, provider, key, role)
    assert (moved.provider, moved.version, moved.data_keys) == (provider, 2, 20)
    assert await home.vault.adopted_key(moved) == KeyReference(key, role)
    assert home.sql("select distinct version from data_keys") == [(2,)]
    assert before not in home.files()
    assert not home.staged()
    assert await home.opens(account, keys)
    rotated = await home.moves.rotate(home.admin(account))
    assert (rotated.provider, rotated.version) == (provider, 3)
    assert await home.vault.adopted_key(rotated) == KeyReference(key, role)
    back = await home.moves.bind(home.admin(account), "", None)
    assert (back.provider, back.version) == ("file", 4)
    assert await home.vault.adopted_key(back) is None
    assert await home.opens(account, keys)
    # The customer's own key is the customer's: it can be bound again.
    assert (await home.bring(account, provider, key, role)).version == 5
    assert await home.opens(account, keys)
    acts = [(action, outcome) for action, _peer, outcome in await home.acts(account)]
    assert [act for act in acts if act[0] in {"key.bind", "key.rotate"}] == [
        ("key.bind", "ok"),
        ("key.rotate", "ok"),
        ("key.bind", "ok"),
        ("key.bind", "ok"),
    ]
    verify_chain(await home.lines(account))


async def test_keys_are_released_and_made_while_the_account_moves(home: Home, customer: Customer) -> None:
    """D20: nobody waits and nobody sees a key that does not open."""
    account, keys = await home.filled(40)
    customer.permit(account)
    customer.fake.faults.delay_s = 0.005
    move = asyncio.create_task(home.bring(account, "aws", customer.arn, _ROLE))
    rounds = 0
    made: dict[str, DataKey] = {}
    while not move.done():
        assert await home.opens(account, dict(list(keys.items())[rounds % 30 :][:5]))
        fresh = ids.new_id()
        made[fresh] = await home.data_key(account, fresh)
        rounds += 1
    assert (await move).provider == "aws"
    assert rounds > 2
    assert home.sql("select distinct version from data_keys") == [(2,)]
    assert await home.opens(account, keys | made)


def _deny(customer: Customer, operation: str) -> None:
    customer.fake.states.denied.add((_ROLE, customer.arn, operation))


def _change(customer: Customer, **values: str) -> None:
    for name, value in values.items():
        setattr(customer.fake.states.keys[customer.arn], name, value)


_UNFIT: list[tuple[str, Callable[[Customer], Any], type[SealcombError]]] = [
    ("another account's", lambda c: c.permit(ids.new_id()), KmsAccessDenied),
    ("no permission to open", lambda c: _deny(c, "Decrypt"), KmsAccessDenied),
    ("no permission to seal", lambda c: _deny(c, "Encrypt"), KmsAccessDenied),
    ("wrong type", lambda c: _change(c, spec="RSA_2048"), KmsKeyInvalid),
    ("wrong usage", lambda c: _change(c, usage="GENERATE_VERIFY_MAC"), KmsKeyInvalid),
    ("disabled", lambda c: _change(c, state="Disabled"), KmsKeyDisabled),
    ("to be deleted", lambda c: _change(c, state="PendingDeletion"), KmsKeyDisabled),
    ("gone", lambda c: c.fake.states.keys.pop(c.arn), KmsKeyInvalid),
    ("another region", lambda c: setattr(c, "arn", c.arn.replace("eu-", "us-")), KmsKeyInvalid),
    ("an alias", lambda c: setattr(c, "arn", "arn:aws:kms:eu-central-1:1:alias/mine"), KmsKeyInvalid),
    ("unreachable", lambda c: c.fake.stop(), KmsUnavailable),
]


@pytest.mark.parametrize(("what", "spoil", "expected"), _UNFIT, ids=[row[0] for row in _UNFIT])
async def test_a_key_that_does_not_fit_is_refused_and_the_old_one_stays_in_force(
    home: Home, customer: Customer, what: str, spoil: Callable[[Customer], Any], expected: type[SealcombError]
) -> None:
    """D1: with the reason, which the audit chain holds too."""
    account, keys = await home.filled(3)
    customer.permit(account)
    spoil(customer)
    before = home.sql("select * from data_keys"), home.sql("select * from account_keys")
    with pytest.raises(expected) as refusal:
        await home.bring(account, "aws", customer.arn, _ROLE)
    assert (home.sql("select * from data_keys"), home.sql("select * from account_keys")) == before
    assert not home.staged()
    assert await home.opens(account, keys)
    assert ("key.bind", "gateway", refusal.value.reason) in await home.acts(account)


async def test_a_kms_that_is_not_configured_and_a_file_take_no_keys(home: Home) -> None:
    account, _keys = await home.filled(1)
    for provider in ("aws", "file", ""):
        with pytest.raises(InvalidArgument):
            await home.bring(account, provider, "x")


async def test_without_the_proof_an_account_would_move_to_a_key_that_cannot_open(
    home: Home, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the table above."""
    account, keys = await home.filled(3)
    customer.permit(account)
    _deny(customer, "Decrypt")

    async def unproved(kms: AwsKms, account: str, version: int, reference: KeyReference) -> Any:
        from services.keyvault.kms.binding import Handle
        from services.keyvault.records import AccountKey

        handle = Handle(account, version, reference.key, reference.role, adopted=True)
        return AccountKey(account, version, handle.encode(), kms.provider)

    monkeypatch.setattr(AwsKms, "adopt_key", unproved)
    await home.bring(account, "aws", customer.arn, _ROLE)
    with pytest.raises(KmsAccessDenied):
        await home.opens(account, keys)


async def test_a_key_that_is_turned_off_in_the_middle_leaves_the_old_one_in_force(
    home: Home, customer: Customer
) -> None:
    account, keys = await home.filled(40)
    customer.permit(account)
    customer.fake.faults.delay_s = 0.02
    move = asyncio.create_task(home.bring(account, "aws", customer.arn, _ROLE))
    await _until(lambda: bool(home.sql("select id from rewrapped")))
    _change(customer, state="Disabled")
    with pytest.raises(KmsKeyDisabled):
        await move
    assert not home.staged()
    assert home.sql("select version, provider from account_keys") == [(1, "file")]
    assert await home.opens(account, keys)
    assert ("key.bind", "gateway", "KEY_DISABLED") in await home.acts(account)


async def test_a_silent_kms_is_waited_for_and_the_move_goes_on_by_itself(home: Home, fake: AwsFake) -> None:
    """The caller is answered meanwhile, with how far it is; the old key serves."""
    home.provide(AwsKms(aws_client(fake, 10.0)), batch=8, caller_waits_s=0.3)
    customer = Customer(fake, fake.states.add_key(_CUSTOMER).arn)
    account, keys = await home.filled(40)
    customer.permit(account)
    fake.faults.delay_s = 0.05
    unfinished = await home.bring(account, "aws", customer.arn, _ROLE)
    assert (unfinished.provider, unfinished.version) == ("file", 1)
    await _until(lambda: bool(home.sql("select id from rewrapped")))
    progress = await home.moves.progress(account)
    assert progress is not None
    assert (progress.provider, progress.version, progress.data_keys) == ("aws", 2, 40)
    assert progress.rewrapped < 40
    with pytest.raises(Aborted):
        await home.moves.rotate(home.admin(account))
    fake.stop()
    await asyncio.sleep(1.0)
    assert await home.opens(account, keys)
    assert home.sql("select version, provider from account_keys") == [(1, "file")]
    fake.faults.delay_s = 0.0
    fake.start()
    await _until(lambda: not home.staged())
    assert home.sql("select version, provider from account_keys") == [(2, "aws")]
    assert await home.opens(account, keys)


async def test_a_kms_that_stays_silent_ends_the_move(home: Home, fake: AwsFake) -> None:
    home.provide(AwsKms(aws_client(fake, 10.0)), batch=8, patience_s=0.5)
    customer = Customer(fake, fake.states.add_key(_CUSTOMER).arn)
    account, keys = await home.filled(40)
    customer.permit(account)
    fake.faults.delay_s = 0.01
    move = asyncio.create_task(home.bring(account, "aws", customer.arn, _ROLE))
    await _until(lambda: bool(home.sql("select id from rewrapped")))
    fake.stop()
    with pytest.raises(KmsUnavailable):
        await move
    assert not home.staged()
    assert await home.opens(account, keys)


_DIE_IN_MOVE = """
import asyncio, os, signal, sys
from pathlib import Path
from services.keyvault.kms.file import FileKms
from services.keyvault.moves import Moves
from services.keyvault.transaction import Transaction
from services.common.clock import SystemClock
from tests.keyvault.rig import Rig

calls = 0

async def main(database, account, method, number):
    rig = Rig(Path(database), FileKms(bytes(range(32))))
    real = getattr(Transaction, method)

    def die(self, *arguments):
        global calls
        calls += 1
        if calls == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments)

    setattr(Transaction, method, die)
    moves = Moves(rig.store, rig.registry, SystemClock(), batch=4)
    await moves.bind(rig.asker(account), "", None)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("method", "number", "wrapped_before"),
    [("begin_move", 1, 0), ("stage", 1, 0), ("stage", 3, 8), ("rewrap_data_keys", 1, 20), ("append", 1, 20)],
)
async def test_a_move_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, method: str, number: int, wrapped_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D20: at the next start, by itself, without wrapping anything twice; all opens meanwhile."""
    home = Home(tmp_path / "keyvault.db", FileKms(bytes(range(32))))
    account, keys = await home.filled(21)
    home.close()
    command = [sys.executable, "-c", _DIE_IN_MOVE, str(home.database), account, method, str(number)]
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = await asyncio.create_subprocess_exec(*command, env=environment)
    assert await asyncio.wait_for(child.wait(), 60) == -signal.SIGKILL
    home = Home(home.database, FileKms(bytes(range(32))))
    wraps: list[str] = []
    real = FileKms.wrap

    async def counted(kms: FileKms, key: Any, wrapping: Any, secret: bytes) -> bytes:
        wraps.append(wrapping.key_id)
        return await real(kms, key, wrapping, secret)

    monkeypatch.setattr(FileKms, "wrap", counted)
    home.provide()
    begun = method != "begin_move"
    assert bool(await home.moves.progress(account)) == begun
    assert await home.opens(account, keys)
    await home.moves.resume()
    assert len(wraps) == (21 - wrapped_before if begun else 0)
    assert home.sql("select distinct version from data_keys") == [(2 if begun else 1,)]
    assert home.sql("select version from account_keys") == [(2 if begun else 1,)]
    assert not home.staged()
    assert await home.opens(account, keys)
    assert [act for act in await home.acts(account) if act[0] == "key.bind"] == (
        [("key.bind", "vectorstore", "ok")] if begun else []
    )
    verify_chain(await home.lines(account))
    home.close()


async def test_what_is_destroyed_in_the_middle_leaves_nothing_behind(home: Home, customer: Customer) -> None:
    """F9: a collection's keys, and then the account's; neither key is left with anything."""
    account, keys = await home.filled(40)
    customer.permit(account)
    customer.fake.faults.delay_s = 0.02
    move = asyncio.create_task(home.bring(account, "aws", customer.arn, _ROLE))
    await _until(lambda: bool(home.sql("select id from rewrapped")))
    staged = home.sql("select id from rewrapped")[0][0]
    resource = home.sql("select resource from data_keys where id=:id", id=staged)[0][0]
    delete = home.asker(account, method="/sealcomb.v1.CollectionService/DeleteCollection")
    await home.releases.destroy(delete, resource)
    assert not home.sql("select id from rewrapped where id=:id", id=staged)
    await home.vault.destroy(home.asker(account, "gateway"))
    with pytest.raises(SealcombError):
        await move
    assert not home.staged()
    assert not home.sql("select * from account_keys")
    assert customer.fake.states.keys[customer.arn].state == "Enabled"
    assert keys


async def test_an_account_that_is_turned_off_in_the_middle_stays_where_it_is(
    home: Home, customer: Customer
) -> None:
    account, keys = await home.filled(40)
    customer.permit(account)
    customer.fake.faults.delay_s = 0.02
    move = asyncio.create_task(home.bring(account, "aws", customer.arn, _ROLE))
    await _until(lambda: bool(home.sql("select id from rewrapped")))
    await home.vault.disable(home.admin(account))
    with pytest.raises(KeyDisabled):
        await move
    assert not home.staged()
    await home.vault.enable(home.admin(account))
    assert await home.opens(account, keys)


async def test_a_key_that_its_kms_cannot_destroy_now_is_destroyed_later(home: Home, fake: AwsFake) -> None:
    """F9: an answer that was lost, or a crash, leaves no key of ours at work for ever."""
    aws = AwsKms(aws_client(fake, 10.0))
    home.provide(home.kms, default=aws)
    account, keys = await home.filled(2)
    arn = next(iter(fake.states.keys))
    fake.states.denied.add(("keyvault", arn, "ScheduleKeyDeletion"))
    assert (await home.moves.rotate(home.admin(account))).version == 2
    assert fake.states.keys[arn].state == "Enabled"
    assert home.sql("select version, provider from retired_keys") == [(1, "aws")]
    fake.states.denied.clear()
    await Retirements(home.store, home.registry)._destroy("")
    assert fake.states.keys[arn].state == "PendingDeletion"
    assert not home.sql("select * from retired_keys")
    assert await home.opens(account, keys)
    await aws.close()


async def test_a_receipt_says_when_the_kms_is_due_and_which_key_is_its_owners(
    home: Home, fake: AwsFake
) -> None:
    """D21: what it says of our own key is what AWS was asked for; an adopted key is never destroyed."""
    aws = AwsKms(aws_client(fake))
    home.provide(home.kms, default=aws)
    account, _keys = await home.filled(1)
    brought, _more = await home.filled(1)
    customer = Customer(fake, fake.states.add_key(_CUSTOMER).arn)
    customer.permit(brought)
    await home.bring(brought, "aws", customer.arn, _ROLE)
    for who, places, days in ((account, [[1, "aws"]], 7), (brought, [[2, "aws", "adopted"]], 0)):
        asked = len(fake.operations("ScheduleKeyDeletion"))
        await home.vault.destroy(home.asker(who, "gateway"))
        receipt = json.loads(await home.receipts.of(who))
        assert receipt["account_keys"] == places
        assert receipt["kms_due_us"] - receipt["destroy_us"] == days * 86_400_000_000
        scheduled = fake.operations("ScheduleKeyDeletion")[asked:]
        assert [call.body["PendingWindowInDays"] for call in scheduled] == ([days] if days else [])
    assert fake.states.keys[customer.arn].state == "Enabled"
    await aws.close()
