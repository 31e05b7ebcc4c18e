"""What callers named, sealed under each account's key: account names, token labels, a token's collections.

Every call needs a caller of that account to be current, since keyvault releases keys for it alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.context import current_account
from services.common.datakeys import DataKeys
from services.common.sealing import Identity, key_id_of, open_sealed, seal

_PROFILE = "profile"
# Reasons for which keyvault releases no key: what is sealed is then shown as empty, not as an error.
KEY_IS_OFF = frozenset({"KEY_DISABLED", "ACCOUNT_SUSPENDED"})


@dataclass(frozen=True, slots=True)
class TokenProfile:
    """The sealed part of a token."""

    label: str
    collections: tuple[str, ...]


class Profiles:
    """Seals and opens profiles with the account's profile key."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    async def seal_name(self, name: str) -> bytes:
        """The current account's name, sealed."""
        return await self._seal("account-name", "", name.encode())

    async def open_name(self, sealed: bytes) -> str:
        """The current account's name. Raises KeyDisabled while its key is off."""
        return (await self._open("account-name", "", sealed)).decode()

    async def seal_token(self, token_id: str, label: str, collections: Sequence[str]) -> bytes:
        """A token's label and collections, sealed."""
        return await self._seal("token", token_id, json.dumps([label, list(collections)]).encode())

    async def open_token(self, token_id: str, sealed: bytes) -> TokenProfile:
        """A token's label and collections. Raises KeyDisabled while the account's key is off."""
        label, collections = json.loads(await self._open("token", token_id, sealed))
        return TokenProfile(label, tuple(collections))

    def drop_account(self, account: str) -> None:
        """Forgets the account's key."""
        self._keys.drop_account(account)

    def drop_all(self) -> None:
        """Forgets every key."""
        self._keys.drop_all()

    async def _seal(self, kind: str, name: str, plaintext: bytes) -> bytes:
        key = await self._keys.current(_PROFILE, _PROFILE)
        return seal(key, Identity(current_account(), _PROFILE, kind, name), plaintext)

    async def _open(self, kind: str, name: str, sealed: bytes) -> bytes:
        key = await self._keys.by_id(_PROFILE, _PROFILE, key_id_of(sealed))
        return open_sealed(key, Identity(current_account(), _PROFILE, kind, name), sealed)
