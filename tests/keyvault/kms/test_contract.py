"""The contract of every KMS: one suite for files, OpenBao, SoftHSM and strict fakes (D8, D9, D23)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common import ids
from services.common.sealing import OpenFailed
from services.keyvault.kms.protocol import Kms
from services.keyvault.records import Wrapping
from tests.keyvault.kms.conftest import PROVIDERS

_ACCOUNT = ids.from_bytes(b"account of tests")
_OTHER = ids.from_bytes(b"another account!")
_SECRET = b"canary of a data key, 32 bytes .."[:32]
_WRAPPING = Wrapping(_ACCOUNT, ids.from_bytes(b"resource of test"), "collection", ids.from_bytes(bytes(16)))

pytestmark = pytest.mark.parametrize("kms", PROVIDERS, indirect=True)


async def test_what_is_wrapped_unwraps(kms: Kms) -> None:
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    assert _SECRET[:20] not in wrapped
    assert _SECRET[:20] not in key.handle
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET
    assert await kms.wrap(key, _WRAPPING, _SECRET) != wrapped


async def test_a_key_names_its_provider_and_its_owner(kms: Kms) -> None:
    key = await kms.new_key(_ACCOUNT, 7)
    assert (key.account, key.version, key.provider) == (_ACCOUNT, 7, kms.provider)
    assert 0 < len(kms.provider) <= 16
    assert kms.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        replace(_WRAPPING, resource=ids.from_bytes(bytes(16))),
        replace(_WRAPPING, resource="", purpose=_WRAPPING.resource + _WRAPPING.purpose),
        replace(_WRAPPING, purpose="documents"),
        replace(_WRAPPING, key_id=ids.from_bytes(bytes(15) + b"\1")),
        replace(_WRAPPING, account=_OTHER),
    ],
)
async def test_nothing_unwraps_in_another_encryption_context(kms: Kms, changed: Wrapping) -> None:
    """D8, D9, D10: account, resource, purpose and key id, each by itself, and where one ends."""
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    with pytest.raises(OpenFailed):
        await kms.unwrap(key, changed, wrapped)
    with pytest.raises(OpenFailed):
        await kms.unwrap(replace(key, account=changed.account), changed, wrapped)


async def test_nothing_unwraps_under_another_key(kms: Kms) -> None:
    """D9: another account's, another version's, or a handle moved to another account."""
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    others = [await kms.new_key(_ACCOUNT, 1), await kms.new_key(_ACCOUNT, 2)]
    for other in [*others, replace(key, handle=others[0].handle), replace(key, version=2)]:
        with pytest.raises(OpenFailed):
            await kms.unwrap(other, _WRAPPING, wrapped)
    foreign = await kms.new_key(_OTHER, 1)
    for other in (foreign, replace(foreign, account=_ACCOUNT)):
        with pytest.raises(OpenFailed):
            await kms.unwrap(other, _WRAPPING, wrapped)


async def test_no_changed_wrapping_unwraps(kms: Kms) -> None:
    """D23: whichever byte it is, and always by the same error."""
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    for at in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[at] ^= 1
        with pytest.raises(OpenFailed):
            await kms.unwrap(key, _WRAPPING, bytes(changed))
    for cut in (b"", wrapped[:1], wrapped[:-1], wrapped + b"\0"):
        with pytest.raises(OpenFailed):
            await kms.unwrap(key, _WRAPPING, cut)


async def test_keys_differ_every_time_and_forgetting_loses_nothing(kms: Kms) -> None:
    """D22: two that are made for the same account and version at once are two."""
    keys = [await kms.new_key(_ACCOUNT, 1) for _ in range(10)]
    assert len({key.handle for key in keys}) == 10
    wrapped = await kms.wrap(keys[0], _WRAPPING, _SECRET)
    kms.forget(_ACCOUNT)
    assert await kms.unwrap(keys[0], _WRAPPING, wrapped) == _SECRET


async def test_a_destroyed_key_destroys_no_other_and_may_be_destroyed_again(kms: Kms) -> None:
    gone, kept = await kms.new_key(_ACCOUNT, 1), await kms.new_key(_ACCOUNT, 2)
    wrapped = await kms.wrap(kept, _WRAPPING, _SECRET)
    await kms.destroy_key(gone)
    await kms.destroy_key(gone)
    assert await kms.unwrap(kept, _WRAPPING, wrapped) == _SECRET
