"""What keyvault asks of a KMS, whichever it is."""

from __future__ import annotations

from typing import Protocol

from services.keyvault.records import AccountKey, Wrapping


class Kms(Protocol):
    """Holds account keys and wraps data keys under them.

    A wrapping opens only under the same account key and with the same `Wrapping`, all of it. Any
    failure to open is one error, OpenFailed. Methods may raise KeyDisabled or Unavailable where
    the KMS itself does.
    """

    @property
    def provider(self) -> str:
        """Which kind of KMS this is."""

    @property
    def fingerprint(self) -> bytes:
        """Names this KMS and its root, so that a database is never opened beside another."""

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new account key, never given out before."""

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key's 32 bytes wrapped."""

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key's 32 bytes."""

    async def destroy_key(self, key: AccountKey) -> None:
        """Makes everything wrapped under the account key unreadable, for good."""

    def forget(self, account: str) -> None:
        """Drops whatever is held in memory for the account."""
