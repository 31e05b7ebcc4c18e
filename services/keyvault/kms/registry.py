"""The providers of this installation, each account key with the one that holds it.

New account keys are made by the default provider; every use goes to the provider that the key
itself names, so that accounts can move one by one.

An adopted key may be anywhere, so whoever writes the database could otherwise point an account
at a key of their own: its handle is kept sealed under a data key of the installation's account,
and an adopted handle that is not sealed is refused. Keys of our own are where only we can make
keys, which each provider checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from services.common.errors import FailedPrecondition, invalid
from services.common.sealing import DataKey, Identity, OpenFailed, open_sealed, seal
from services.keyvault.kms.binding import handle_of, is_adopted
from services.keyvault.kms.protocol import KeyReference, Kms
from services.keyvault.records import AccountKey, Wrapping

_ADOPTED = b"adopted\0"
_FILE = "file"
# A key of theirs is in its handle, so that deleting that destroys it.
_LOCAL = frozenset({_FILE, "aws-root"})


class ProviderMissing(FailedPrecondition):
    """The account's key is at a provider that this installation no longer has."""

    reason = "KMS_PROVIDER_MISSING"

    def __init__(self) -> None:
        super().__init__("the account's key is at a KMS that is not configured; ask the operator")


class KmsRegistry:
    """A Kms of several; its own `provider` and `fingerprint` are those of new keys."""

    def __init__(self, default: Kms, others: Iterable[Kms] = ()) -> None:
        self._default = default
        self._by_name = {kms.provider: kms for kms in (*others, default)}
        self._handle_key: DataKey | None = None

    @property
    def provider(self) -> str:
        """The provider of new keys."""
        return self._default.provider

    @property
    def fingerprint(self) -> bytes:
        """The default provider's."""
        return self._default.fingerprint

    @property
    def fingerprints(self) -> dict[str, bytes]:
        """Each provider's, by its name."""
        return {name: kms.fingerprint for name, kms in self._by_name.items()}

    def seal_handles_with(self, key: DataKey) -> None:
        """Gives the key under which adopted keys' handles are sealed; without it none is adopted or used."""
        self._handle_key = key

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new account key at the default provider."""
        return await self._default.new_key(account, version)

    async def next_key(self, key: AccountKey, version: int) -> AccountKey:
        """The next version of a key, where the key is: a new key of our own, or the same adopted one."""
        kms, opened = self._find(key)
        if not is_adopted(opened.handle):
            return await kms.new_key(key.account, version)
        handle = handle_of(opened)
        return await self.adopt(key.provider, key.account, version, KeyReference(handle.key, handle.role))

    async def adopt(self, provider: str, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A key that its owner made for the account, at one of the providers; proved fit for use."""
        kms = self._by_name.get(provider)
        if kms is None:
            raise invalid("key", "is at a KMS that is not configured here")
        key = await kms.adopt_key(account, version, reference)
        return replace(key, handle=_ADOPTED + seal(self._sealing_key(), _identity(key), key.handle))

    def is_elsewhere(self, key: AccountKey) -> bool:
        """Whether the key is one of our own that its KMS must be asked to destroy."""
        return key.provider not in _LOCAL and not marks_adopted(key.handle)

    def is_local(self, key: AccountKey) -> bool:
        """Whether wrapping under the key asks nobody: it is in this process."""
        return key.provider == _FILE

    def reference_of(self, key: AccountKey) -> KeyReference | None:
        """Which key it is in its owner's words; None for one of our own."""
        if not marks_adopted(key.handle):
            return None
        handle = handle_of(self._find(key)[1])
        return KeyReference(handle.key, handle.role)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """The same at the default provider."""
        return await self.adopt(self.provider, account, version, reference)

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key wrapped by the key's provider."""
        kms, opened = self._find(key)
        return await kms.wrap(opened, wrapping, secret)

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """A data key unwrapped by the key's provider."""
        kms, opened = self._find(key)
        return await kms.unwrap(opened, wrapping, wrapped)

    async def destroy_key(self, key: AccountKey) -> None:
        """Destroys a key at its provider; an adopted one is only forgotten."""
        kms, opened = self._find(key)
        await kms.destroy_key(opened)

    def forget(self, account: str) -> None:
        """Drops what any provider holds for the account."""
        for kms in self._by_name.values():
            kms.forget(account)

    async def close(self) -> None:
        """Closes every provider."""
        for kms in self._by_name.values():
            await kms.close()

    def _find(self, key: AccountKey) -> tuple[Kms, AccountKey]:
        kms = self._by_name.get(key.provider)
        if kms is None:
            raise ProviderMissing
        if marks_adopted(key.handle):
            handle = open_sealed(self._sealing_key(), _identity(key), key.handle[len(_ADOPTED) :])
            return kms, replace(key, handle=handle)
        if is_adopted(key.handle):
            raise OpenFailed
        return kms, key

    def _sealing_key(self) -> DataKey:
        if self._handle_key is None:
            raise FailedPrecondition("keyvault has not started yet; try again")
        return self._handle_key


def marks_adopted(handle: bytes) -> bool:
    """Whether a handle, as it is stored, is of a key that its account brought."""
    return handle.startswith(_ADOPTED)


def _identity(key: AccountKey) -> Identity:
    return Identity(key.account, "account-key", "adopted", key.provider, key.version)
