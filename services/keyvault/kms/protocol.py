"""What keyvault asks of a KMS, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.keyvault.records import AccountKey, Wrapping

# Where a KMS destroys keys only after a wait of its own: the days that it is asked to wait.
WAIT_DAYS = {"aws": 7}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """A key that somebody else made and an account wants to use, in the provider's own words.

    `key` is an ARN, a transit mount and key, or a PKCS#11 label; `role` is the AWS role to act in.
    """

    key: str
    role: str = ""


class Kms(Protocol):
    """Holds account keys and wraps data keys under them.

    A wrapping opens only under the same account key and with the same `Wrapping`, all of it. Any
    failure to open is one error, OpenFailed. What the KMS itself refuses is one of the errors of
    `faults`: a KMS that does not answer is never taken for one that says no.
    """

    @property
    def provider(self) -> str:
        """The name of this KMS in account keys: at most 16 characters, the same for ever."""

    @property
    def fingerprint(self) -> bytes:
        """Names this KMS and its root, so that a database is never opened beside another."""

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new account key, never given out before."""

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A key that its owner made for the account; proved fit for use, and never destroyed by us."""

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key's 32 bytes wrapped."""

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key's 32 bytes."""

    async def destroy_key(self, key: AccountKey) -> None:
        """Makes everything wrapped under the account key unreadable, for good; no error if it is gone."""

    def forget(self, account: str) -> None:
        """Drops whatever is held in memory for the account."""

    async def close(self) -> None:
        """Ends connections and threads."""
