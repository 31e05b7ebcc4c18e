"""What the file KMS promises beside the contract (D8)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common import ids
from services.common.sealing import DataKey, Identity, OpenFailed, open_sealed
from services.keyvault.kms import file
from services.keyvault.kms.file import FileKms
from services.keyvault.records import AccountKey, Wrapping

_ROOT = bytes(range(32))
_SECRET = b"canary of a data key, 32 bytes .."
_WRAPPING = Wrapping("account", "resource", "collection", ids.from_bytes(bytes(16)))


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
        monkeypatch.setattr(file, "_ACCOUNTS_MAX", 3)
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
