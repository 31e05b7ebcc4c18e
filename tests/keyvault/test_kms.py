"""The contract of every KMS, and what the file KMS promises besides (D8, D9, D23)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common import ids
from services.common.sealing import DataKey, Identity, OpenFailed, open_sealed
from services.keyvault.kms import file
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.protocol import Kms
from services.keyvault.records import AccountKey, Wrapping
from tests.keyvault.rig import MemoryKms

_ROOT = bytes(range(32))
_SECRET = b"canary of a data key, 32 bytes .."
_WRAPPING = Wrapping("account", "resource", "collection", ids.from_bytes(bytes(16)))


@pytest.fixture(params=["file", "memory"])
def kms(request: pytest.FixtureRequest) -> Kms:
    """Each KMS in turn."""
    return FileKms(_ROOT) if request.param == "file" else MemoryKms()


async def test_what_is_wrapped_unwraps(kms: Kms) -> None:
    key = await kms.new_key("account", 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET[:32])
    assert _SECRET[:20] not in wrapped
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET[:32]


@pytest.mark.parametrize(
    "changed",
    [
        replace(_WRAPPING, resource="other"),
        replace(_WRAPPING, purpose="documents"),
        replace(_WRAPPING, key_id=ids.from_bytes(bytes(15) + b"\1")),
        replace(_WRAPPING, account="other"),
    ],
)
async def test_nothing_unwraps_in_another_encryption_context(kms: Kms, changed: Wrapping) -> None:
    """D8, D9: account, resource, purpose and key id, each by itself."""
    key = await kms.new_key("account", 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET[:32])
    with pytest.raises(OpenFailed):
        await kms.unwrap(key, changed, wrapped)
    with pytest.raises(OpenFailed):
        await kms.unwrap(replace(key, account=changed.account), changed, wrapped)


async def test_nothing_unwraps_under_another_key(kms: Kms) -> None:
    """D9: another account's, another version's, or a handle moved to another account."""
    key = await kms.new_key("account", 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET[:32])
    others = [await kms.new_key("account", 1), await kms.new_key("account", 2)]
    for other in [*others, replace(key, handle=others[0].handle), replace(key, version=2)]:
        with pytest.raises(OpenFailed):
            await kms.unwrap(other, _WRAPPING, wrapped)
    foreign = await kms.new_key("other", 1)
    with pytest.raises(OpenFailed):
        await kms.unwrap(foreign, _WRAPPING, wrapped)


async def test_no_changed_wrapping_unwraps(kms: Kms) -> None:
    """D23: whichever byte it is, and always by the same error."""
    key = await kms.new_key("account", 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET[:32])
    for at in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[at] ^= 1
        with pytest.raises(OpenFailed):
            await kms.unwrap(key, _WRAPPING, bytes(changed))
    for cut in (b"", wrapped[:-1], wrapped + b"\0"):
        with pytest.raises(OpenFailed):
            await kms.unwrap(key, _WRAPPING, cut)


async def test_keys_differ_every_time_and_forgetting_loses_nothing(kms: Kms) -> None:
    keys = [await kms.new_key("account", 1) for _ in range(20)]
    assert len({key.handle for key in keys}) == 20
    wrapped = await kms.wrap(keys[0], _WRAPPING, _SECRET[:32])
    kms.forget("account")
    assert await kms.unwrap(keys[0], _WRAPPING, wrapped) == _SECRET[:32]


class TestFile:
    """What is particular to the file KMS."""

    async def test_another_root_key_opens_no_handle(self) -> None:
        key = await FileKms(_ROOT).new_key("account", 1)
        other = FileKms(bytes(32))
        with pytest.raises(OpenFailed):
            await other.wrap(key, _WRAPPING, _SECRET[:32])
        assert other.fingerprint != FileKms(_ROOT).fingerprint

    async def test_a_handle_opens_for_its_account_and_version_alone(self) -> None:
        """D8: a swap of account keys between rows of the database."""
        kms = FileKms(_ROOT)
        key = await kms.new_key("account", 1)
        for moved in (replace(key, account="other"), replace(key, version=2)):
            with pytest.raises(OpenFailed):
                await kms.wrap(moved, replace(_WRAPPING, account=moved.account), _SECRET[:32])

    async def test_a_moved_handle_opens_once_its_place_is_not_bound(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """D8's twin."""
        monkeypatch.setattr(file, "_key_identity", lambda _account, _version: Identity("", "", "kek"))
        kms = FileKms(_ROOT)
        key = replace(await kms.new_key("account", 1), account="other")
        wrapping = replace(_WRAPPING, account="other")
        assert await kms.unwrap(key, wrapping, await kms.wrap(key, wrapping, _SECRET[:32])) == _SECRET[:32]

    async def test_an_account_key_made_by_another_is_not_taken(self) -> None:
        """D8: an attacker's own key, sealed under the attacker's own root, put into the database."""
        attackers = await FileKms(bytes(32)).new_key("account", 1)
        with pytest.raises(OpenFailed):
            await FileKms(_ROOT).unwrap(attackers, _WRAPPING, b"")

    async def test_a_handle_is_the_documented_sealed_object(self) -> None:
        """The bytes of docs/keys.md: 16 of id, 32 of key, under the root key."""
        kms = FileKms(_ROOT, lambda size: bytes(range(size)))
        key = await kms.new_key("account", 3)
        plain = open_sealed(kms._root, Identity("account", "account-key", "kek", version=3), key.handle)
        assert plain == bytes(range(48))
        wrapped = await kms.wrap(key, _WRAPPING, _SECRET[:32])
        account_key = DataKey(ids.from_bytes(bytes(range(16))), bytes(range(16, 48)))
        identity = Identity("account", "resource", "data-key:collection", _WRAPPING.key_id)
        assert open_sealed(account_key, identity, wrapped) == _SECRET[:32]

    async def test_unsealed_keys_are_bounded_and_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file, "_KEYS_MAX", 3)
        kms = FileKms(_ROOT)
        keys: list[AccountKey] = []
        for number in range(6):
            keys.append(await kms.new_key(f"account{number}", 1))
            await kms.wrap(keys[-1], replace(_WRAPPING, account=f"account{number}"), _SECRET[:32])
        assert len(kms._keys) == 3
        kms.forget("account5")
        assert len(kms._keys) == 2
        await kms.destroy_key(keys[4])
        assert len(kms._keys) == 1
        assert "canary" not in repr(vars(kms))
