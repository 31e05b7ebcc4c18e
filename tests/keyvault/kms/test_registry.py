"""Several KMSs in one installation: each key with its own, adopted ones beyond a database's writer (D8)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.common import ids
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.sealing import DataKey, OpenFailed
from services.keyvault.kms import registry as registry_module
from services.keyvault.kms.binding import Handle, handle_of, is_adopted
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.kms.registry import KmsRegistry, ProviderMissing
from services.keyvault.records import AccountKey, Wrapping
from services.keyvault.vault import Vault, WrongInstallation
from tests.keyvault.rig import MemoryKms, Rig

_ACCOUNT = ids.from_bytes(b"account of tests")
_SECRET = bytes(range(32))
_WRAPPING = Wrapping(_ACCOUNT, ids.from_bytes(b"resource of test"), "collection", ids.from_bytes(bytes(16)))
_HANDLE_KEY = DataKey(ids.from_bytes(bytes(16)), bytes(range(32)))
_BROUGHT = KeyReference("brought", "role")


@pytest.fixture
def kms() -> KmsRegistry:
    """Files for new keys, and a KMS that takes adopted ones."""
    made = KmsRegistry(FileKms(bytes(range(32))), [MemoryKms()])
    made.seal_handles_with(_HANDLE_KEY)
    return made


async def test_each_key_is_used_where_it_is(kms: KmsRegistry) -> None:
    own = await kms.new_key(_ACCOUNT, 1)
    brought = await kms.adopt("memory", _ACCOUNT, 2, _BROUGHT)
    assert (kms.provider, own.provider, brought.provider) == ("file", "file", "memory")
    for key in (own, brought):
        wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
        assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET
        other = "memory" if key.provider == "file" else "file"
        with pytest.raises(OpenFailed):
            await kms.unwrap(replace(key, provider=other), _WRAPPING, wrapped)
        with pytest.raises(ProviderMissing):
            await kms.unwrap(replace(key, provider="gone"), _WRAPPING, wrapped)
        kms.forget(_ACCOUNT)
        await kms.destroy_key(key)


async def test_the_next_version_is_where_the_key_is(kms: KmsRegistry) -> None:
    own = await kms.next_key(await kms.new_key(_ACCOUNT, 1), 2)
    brought = await kms.next_key(await kms.adopt("memory", _ACCOUNT, 2, _BROUGHT), 3)
    assert (own.provider, own.version) == ("file", 2)
    assert (brought.provider, brought.version) == ("memory", 3)
    handle = handle_of(kms._find(brought)[1])
    assert (handle.key, handle.role, handle.adopted) == ("brought", "role", True)


async def test_an_adopted_handle_that_keyvault_did_not_seal_is_refused(kms: KmsRegistry) -> None:
    """D8: written into the database, moved from another account or version, or sealed elsewhere."""
    genuine = await kms.adopt("memory", _ACCOUNT, 1, _BROUGHT)
    assert b"brought" not in genuine.handle
    theirs = Handle(_ACCOUNT, 1, "attackers", "role", adopted=True).encode()
    stranger = KmsRegistry(FileKms(bytes(32)), [MemoryKms()])
    stranger.seal_handles_with(DataKey(_HANDLE_KEY.id, bytes(32)))
    elsewhere = await stranger.adopt("memory", _ACCOUNT, 1, _BROUGHT)
    for forged in (
        replace(genuine, handle=theirs),
        replace(genuine, handle=b"adopted\0" + theirs),
        replace(genuine, handle=elsewhere.handle),
        replace(genuine, version=2),
        replace(genuine, account=ids.new_id()),
        replace(genuine, handle=genuine.handle[:-1] + bytes([genuine.handle[-1] ^ 1])),
    ):
        with pytest.raises(OpenFailed):
            await kms.wrap(forged, replace(_WRAPPING, account=forged.account), _SECRET)


async def test_a_forged_adopted_handle_passes_once_nobody_looks(
    kms: KmsRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D8's twin."""
    monkeypatch.setattr(registry_module, "is_adopted", lambda _handle: False)
    theirs = await kms._by_name["memory"].adopt_key(_ACCOUNT, 1, KeyReference("attackers"))
    wrapped = await kms.wrap(theirs, _WRAPPING, _SECRET)
    assert await kms.unwrap(theirs, _WRAPPING, wrapped) == _SECRET


async def test_nothing_is_adopted_before_there_is_a_key_to_seal_it_with() -> None:
    kms = KmsRegistry(MemoryKms())
    with pytest.raises(FailedPrecondition):
        await kms.adopt_key(_ACCOUNT, 1, _BROUGHT)


async def test_a_provider_that_is_not_here_or_takes_no_keys_is_named(kms: KmsRegistry) -> None:
    for provider in ("aws", "", "file"):
        with pytest.raises(InvalidArgument) as refusal:
            await kms.adopt(provider, _ACCOUNT, 1, _BROUGHT)
        assert refusal.value.fields[0].field in {"provider", "key"}


def test_one_handle_has_one_spelling() -> None:
    """D10: no other JSON, no other fields, nothing longer than a handle is."""
    handle = Handle(_ACCOUNT, 1, "k", adopted=True)
    assert is_adopted(handle.encode())
    assert handle_of(AccountKey(_ACCOUNT, 1, handle.encode(), "aws")) == handle
    for raw in (
        b" " + handle.encode(),
        handle.encode() + b" ",
        handle.encode().replace(b",", b", "),
        handle.encode().replace(b'"role":""', b'"role":"","role":""'),
        handle.encode().replace(b'"role":""', b'"role":"","more":1'),
        b"{}",
        b"[" * 3000,
        b"{" * 3000,
        b"",
        Handle(_ACCOUNT, 1, "k" * 5000).encode(),
    ):
        with pytest.raises(OpenFailed):
            handle_of(AccountKey(_ACCOUNT, 1, raw, "aws"))


async def test_an_account_is_told_where_its_key_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "keyvault.db", MemoryKms())
    account = await rig.account()
    assert (await rig.vault.describe(rig.asker(account))).provider == "memory"
    rig.close()


async def test_a_database_is_bound_to_each_kms_and_needs_those_that_hold_its_keys(tmp_path: Path) -> None:
    """D26: a KMS may be added; it may not be exchanged, and not left out while it holds keys."""
    memory = MemoryKms()
    rig = Rig(tmp_path / "keyvault.db", memory)
    await rig.account()
    await rig.vault.bind_installation()

    def vault(*providers: FileKms | MemoryKms) -> Vault:
        registry = KmsRegistry(providers[0], providers[1:])
        return Vault(rig.store, registry, rig.events, rig.clock, rig.completion)

    with pytest.raises(WrongInstallation, match="'memory'; configure it"):
        await vault(FileKms(bytes(range(32)))).bind_installation()
    await vault(FileKms(bytes(range(32))), memory).bind_installation()
    with pytest.raises(WrongInstallation, match="root key is not the one"):
        await vault(FileKms(bytes(32)), memory).bind_installation()
    with pytest.raises(WrongInstallation, match="another one than"):
        await vault(FileKms(bytes(range(32))), MemoryKms()).bind_installation()
    rig.close()
