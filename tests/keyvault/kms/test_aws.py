"""AWS KMS under a strict fake: which key, for whom, and what AWS's refusals become (D8, D9, D11, D14)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.common import ids
from services.common.clock import SystemClock
from services.common.errors import InvalidArgument, SealcombError
from services.common.sealing import OpenFailed
from services.keyvault.kms import aws_client as aws_client_module
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.aws_client import AwsClient
from services.keyvault.kms.aws_root import AwsRootKms
from services.keyvault.kms.binding import handle_of
from services.keyvault.kms.faults import (
    KmsAccessDenied,
    KmsKeyDisabled,
    KmsKeyInvalid,
    KmsThrottled,
    KmsUnavailable,
)
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.records import AccountKey, Wrapping
from tests.keyvault.kms.aws_fake import AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, ROOT, Role
from tests.keyvault.kms.conftest import aws_client
from tests.keyvault.rig import ManualClock

_ACCOUNT = ids.from_bytes(b"account of tests")
_SECRET = bytes(range(32))
_WRAPPING = Wrapping(_ACCOUNT, ids.from_bytes(b"resource of test"), "collection", ids.from_bytes(bytes(16)))
_CUSTOMER = "444455556666"
_ROLE = f"arn:aws:iam::{_CUSTOMER}:role/sealcomb"


@pytest.fixture
def kms(fake: AwsFake) -> AwsKms:
    """A key for each account."""
    return AwsKms(aws_client(fake))


async def _used(kms: AwsKms) -> tuple[AccountKey, bytes]:
    key = await kms.new_key(_ACCOUNT, 1)
    return key, await kms.wrap(key, _WRAPPING, _SECRET)


async def test_every_call_names_its_key_by_arn_and_holds_opaque_ids_alone(fake: AwsFake, kms: AwsKms) -> None:
    """D9, D11: the request log of a life of a key."""
    key, wrapped = await _used(kms)
    await kms.unwrap(key, _WRAPPING, wrapped)
    await kms.destroy_key(key)
    arn = handle_of(key).key
    for asked in fake.asked:
        assert asked.operation == "CreateKey" or asked.body["KeyId"] == arn
        context = asked.body.get("EncryptionContext", {})
        assert context in (
            {},
            {
                "account": _ACCOUNT,
                "resource": _WRAPPING.resource,
                "purpose": "collection",
                "key_id": _WRAPPING.key_id,
            },
        )
    assert fake.states.keys[arn].tags == {"sealcomb:account": _ACCOUNT, "sealcomb:version": "1"}
    assert fake.states.keys[arn].state == "PendingDeletion"


async def test_an_answer_of_another_key_is_refused(fake: AwsFake, kms: AwsKms) -> None:
    """D9."""
    key, wrapped = await _used(kms)
    fake.faults.answer_key = fake.states.add_key().arn
    with pytest.raises(OpenFailed):
        await kms.unwrap(key, _WRAPPING, wrapped)
    with pytest.raises(OpenFailed):
        await kms.wrap(key, _WRAPPING, _SECRET)


async def test_an_answer_of_another_key_passes_once_it_is_not_looked_at(
    fake: AwsFake, kms: AwsKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9's twin."""

    async def unchecked(
        self: AwsClient, operation: str, arn: str, *, role: str = "", account: str = "", **values: Any
    ) -> Any:
        return await self._run(lambda: self._call(operation, role, account, {"KeyId": arn, **values}))

    monkeypatch.setattr(aws_client_module.AwsClient, "call", unchecked)
    key, wrapped = await _used(kms)
    fake.faults.answer_key = fake.states.add_key().arn
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET


async def test_a_key_of_the_databases_writer_is_not_used(fake: AwsFake, kms: AwsKms) -> None:
    """D8: a handle that points to a key of another AWS account, region or name is refused before any call."""
    key, wrapped = await _used(kms)
    theirs = fake.states.add_key(_CUSTOMER)
    fake.states.granted.add((ROOT, theirs.arn))
    asked = len(fake.asked)
    for arn in (theirs.arn, theirs.arn.replace("eu-central-1", "us-east-1"), "alias/x", "", theirs.id):
        moved = replace(key, handle=replace(handle_of(key), key=arn).encode())
        with pytest.raises(KmsKeyInvalid):
            await kms.unwrap(moved, _WRAPPING, wrapped)
    assert len(fake.asked) == asked


@pytest.mark.parametrize(
    ("state", "expected"),
    [("Disabled", KmsKeyDisabled), ("PendingDeletion", KmsKeyDisabled), ("PendingImport", KmsKeyDisabled)],
)
async def test_a_key_that_is_off_in_kms_is_off_here_and_comes_back(
    fake: AwsFake, kms: AwsKms, state: str, expected: type[SealcombError]
) -> None:
    """D14: at the next use, whatever was wrapped before."""
    key, wrapped = await _used(kms)
    kept = fake.states.keys[handle_of(key).key]
    kept.state = state
    with pytest.raises(expected) as refusal:
        await kms.unwrap(key, _WRAPPING, wrapped)
    assert refusal.value.reason == "KEY_DISABLED"
    with pytest.raises(expected):
        await kms.wrap(key, _WRAPPING, _SECRET)
    kept.state = "Enabled"
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET


async def test_what_kms_denies_or_does_not_know_is_said_so(fake: AwsFake, kms: AwsKms) -> None:
    key, wrapped = await _used(kms)
    arn = handle_of(key).key
    fake.states.denied.add((ROOT, arn, "Decrypt"))
    with pytest.raises(KmsAccessDenied):
        await kms.unwrap(key, _WRAPPING, wrapped)
    fake.states.denied.clear()
    kept = fake.states.keys.pop(arn)
    with pytest.raises(KmsKeyInvalid):
        await kms.unwrap(key, _WRAPPING, wrapped)
    fake.states.keys[arn] = replace(kept, usage="SIGN_VERIFY", spec="RSA_2048")
    with pytest.raises(KmsKeyInvalid):
        await kms.unwrap(key, _WRAPPING, wrapped)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("ThrottlingException", 400, KmsThrottled),
        ("KMSInternalException", 500, KmsUnavailable),
        ("DependencyTimeoutException", 503, KmsUnavailable),
        ("ExpiredTokenException", 400, KmsAccessDenied),
        ("UnrecognizedClientException", 400, KmsAccessDenied),
        ("SomethingNewException", 400, KmsKeyInvalid),
        ("InvalidCiphertextException", 400, OpenFailed),
    ],
)
async def test_each_error_has_its_name_and_tells_nothing_of_the_key(
    fake: AwsFake, kms: AwsKms, code: str, status: int, expected: type[SealcombError]
) -> None:
    key, wrapped = await _used(kms)
    fake.faults.codes.append((code, status))
    with pytest.raises(SealcombError) as refusal:
        await kms.unwrap(key, _WRAPPING, wrapped)
    assert type(refusal.value) is expected
    assert "arn" not in refusal.value.message
    assert refusal.value.__cause__ is None


async def test_an_unreachable_kms_is_not_a_disabled_key(fake: AwsFake, kms: AwsKms) -> None:
    key, wrapped = await _used(kms)
    fake.faults.hang_up = True
    with pytest.raises(KmsUnavailable):
        await kms.unwrap(key, _WRAPPING, wrapped)
    fake.faults.hang_up = False
    fake.stop()
    with pytest.raises(KmsUnavailable):
        await kms.unwrap(key, _WRAPPING, wrapped)
    fake.start()
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET


async def test_without_credentials_it_is_denied(fake: AwsFake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(KmsAccessDenied, match="no AWS credentials"):
        await AwsKms(aws_client(fake)).new_key(_ACCOUNT, 1)


class TestAdopted:
    """Keys that customers bring."""

    @pytest.fixture
    def arn(self, fake: AwsFake) -> str:
        """A customer's key, and a role that may use it for one account alone."""
        arn = fake.states.add_key(_CUSTOMER).arn
        fake.states.roles[_ROLE] = Role(_ACCOUNT)
        fake.states.granted.add((_ROLE, arn))
        return arn

    async def test_it_is_used_in_its_role_and_never_destroyed(
        self, fake: AwsFake, kms: AwsKms, arn: str
    ) -> None:
        key = await kms.adopt_key(_ACCOUNT, 3, KeyReference(arn, _ROLE))
        wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
        assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET
        assert {asked.principal for asked in fake.asked} == {_ROLE}
        await kms.destroy_key(key)
        assert fake.states.keys[arn].state == "Enabled"
        assert fake.operations("ScheduleKeyDeletion") == []

    async def test_another_account_cannot_use_it(self, kms: AwsKms, arn: str) -> None:
        """D1: the role's external id is the account's, so its owner decides whose it is."""
        with pytest.raises(KmsAccessDenied):
            await kms.adopt_key(ids.new_id(), 1, KeyReference(arn, _ROLE))

    async def test_a_session_of_one_account_is_not_anothers(self, kms: AwsKms, arn: str) -> None:
        """D1: even while the first account's session lives."""
        await kms.adopt_key(_ACCOUNT, 1, KeyReference(arn, _ROLE))
        with pytest.raises(KmsAccessDenied):
            await kms.adopt_key(ids.new_id(), 1, KeyReference(arn, _ROLE))

    async def test_what_cannot_serve_is_refused_with_the_reason(
        self, fake: AwsFake, kms: AwsKms, arn: str
    ) -> None:
        for wrong in (
            KeyReference(arn),
            KeyReference("alias/mine", _ROLE),
            KeyReference(arn.replace("eu-", "us-"), _ROLE),
        ):
            with pytest.raises(KmsKeyInvalid):
                await kms.adopt_key(_ACCOUNT, 1, wrong)
        fake.states.denied.add((_ROLE, arn, "Decrypt"))
        with pytest.raises(KmsAccessDenied):
            await kms.adopt_key(_ACCOUNT, 1, KeyReference(arn, _ROLE))
        fake.states.denied.clear()
        for values, expected in (
            ({"state": "Disabled"}, KmsKeyDisabled),
            ({"state": "PendingImport"}, KmsKeyInvalid),
            ({"state": "Enabled", "spec": "RSA_2048"}, KmsKeyInvalid),
            ({"state": "Enabled", "usage": "GENERATE_VERIFY_MAC"}, KmsKeyInvalid),
        ):
            for name, value in values.items():
                setattr(fake.states.keys[arn], name, value)
            with pytest.raises(expected):
                await kms.adopt_key(_ACCOUNT, 1, KeyReference(arn, _ROLE))
        del fake.states.keys[arn]
        with pytest.raises(KmsKeyInvalid):
            await kms.adopt_key(_ACCOUNT, 1, KeyReference(arn, _ROLE))


class TestRoot:
    """One KMS key for all accounts."""

    async def test_kms_is_asked_once_for_an_account_and_again_when_its_key_is_old(
        self, fake: AwsFake
    ) -> None:
        """D14: so that the root key's being turned off takes effect within a known time."""
        clock = ManualClock()
        root = fake.states.add_key()
        kms = AwsRootKms(aws_client(fake), root.arn, clock, held_s=30)
        key = await kms.new_key(_ACCOUNT, 1)
        wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
        for _ in range(20):
            await kms.unwrap(key, _WRAPPING, wrapped)
        assert len(fake.operations("Decrypt")) == 1
        root.state = "Disabled"
        clock.time_s += 29
        await kms.unwrap(key, _WRAPPING, wrapped)
        clock.time_s += 1
        with pytest.raises(KmsKeyDisabled):
            await kms.unwrap(key, _WRAPPING, wrapped)
        root.state = "Enabled"
        await kms.unwrap(key, _WRAPPING, wrapped)
        kms.forget(_ACCOUNT)
        assert not kms._keys
        context = fake.operations("Decrypt")[0].body["EncryptionContext"]
        assert context == {"account": _ACCOUNT, "resource": "account-key", "purpose": "kek", "key_id": "1"}

    async def test_a_handle_is_opened_by_the_settings_root_key_alone(self, fake: AwsFake) -> None:
        """D8, D9: whatever key the database names."""
        root, other = fake.states.add_key(), fake.states.add_key()
        key = await AwsRootKms(aws_client(fake), other.arn, SystemClock()).new_key(_ACCOUNT, 1)
        kms = AwsRootKms(aws_client(fake), root.arn, SystemClock())
        with pytest.raises(OpenFailed):
            await kms.wrap(key, _WRAPPING, _SECRET)
        assert fake.asked[-1].body["KeyId"] == root.arn
        for kept in ("", "!", "AAAA"):
            with pytest.raises((OpenFailed, KmsKeyInvalid)):
                await kms.wrap(
                    replace(key, handle=replace(handle_of(key), kept=kept).encode()), _WRAPPING, _SECRET
                )

    async def test_a_root_key_elsewhere_or_a_customers_key_is_refused(self, fake: AwsFake) -> None:
        for arn in (
            fake.states.add_key(_CUSTOMER).arn,
            f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{ids.new_id()}",
            "",
        ):
            with pytest.raises(KmsKeyInvalid):
                AwsRootKms(aws_client(fake), arn, SystemClock())
        kms = AwsRootKms(aws_client(fake), fake.states.add_key().arn, SystemClock())
        with pytest.raises(InvalidArgument):
            await kms.adopt_key(_ACCOUNT, 1, KeyReference("x"))
