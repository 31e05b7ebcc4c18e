"""The embedded KMS: account keys sealed under a root key that a file holds.

The handle of an account key is, sealed under the root key as (account, "account-key", "kek",
version): 16 bytes of key id, 32 bytes of key. A wrapped data key is its 32 bytes sealed under
the account key as (account, resource, "data-key:" + purpose, key id).

The root key and account keys exist in clear in this process's memory alone; this module must
never write them, log them, or let an account key out.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable

from services.common import ids
from services.common.errors import invalid
from services.common.sealing import DataKey, Identity, OpenFailed, open_sealed, seal
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.records import AccountKey, Wrapping

_KEY_BYTES = 32
_ID_BYTES = 16
_ACCOUNTS_MAX = 10_000


class FileKms:
    """Account keys under one root key; unsealed ones are kept, least used out first."""

    provider = "file"

    def __init__(self, root_key: bytes, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        digest = hashlib.sha256(b"sealcomb root key id\0" + root_key).digest()
        # Truncated, so that it names the root key and tells nothing of it.
        self._root = DataKey(ids.from_bytes(digest[:_ID_BYTES]), root_key)
        self._random_bytes = random_bytes
        # By account, so that one's are dropped without a look at all; few have more than one at a time.
        self._keys: OrderedDict[str, dict[AccountKey, DataKey]] = OrderedDict()

    @property
    def fingerprint(self) -> bytes:
        """Names the root key: a database belongs to one."""
        return self._root.id.encode()

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new account key."""
        plain = self._random_bytes(_ID_BYTES + _KEY_BYTES)
        handle = seal(self._root, _key_identity(account, version), plain)
        return AccountKey(account, version, handle, self.provider)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """Refused: a key that somebody else holds is no use to this KMS."""
        raise invalid("provider", "takes no keys of others")

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key wrapped under an account key, bound to its encryption context."""
        return seal(self._unsealed(key), _wrapping_identity(key, wrapping), secret)

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key in a wrapping. Raises OpenFailed for any other key or context."""
        secret = open_sealed(self._unsealed(key), _wrapping_identity(key, wrapping), wrapped)
        if len(secret) != _KEY_BYTES:
            raise OpenFailed
        return secret

    async def destroy_key(self, key: AccountKey) -> None:
        """Forgets an account key for good: its handle is deleted by the store, and nothing else holds it."""
        held = self._keys.get(key.account, {})
        held.pop(key, None)
        if not held:
            self._keys.pop(key.account, None)

    def forget(self, account: str) -> None:
        """Drops the account's unsealed keys from memory."""
        self._keys.pop(account, None)

    async def close(self) -> None:
        """Drops every unsealed key."""
        self._keys.clear()

    def _unsealed(self, key: AccountKey) -> DataKey:
        held = self._keys.get(key.account, {}).get(key)
        if held is not None:
            self._keys.move_to_end(key.account)
            return held
        plain = open_sealed(self._root, _key_identity(key.account, key.version), key.handle)
        if len(plain) != _ID_BYTES + _KEY_BYTES:
            raise OpenFailed
        held = DataKey(ids.from_bytes(plain[:_ID_BYTES]), plain[_ID_BYTES:])
        self._keys.setdefault(key.account, {})[key] = held
        if len(self._keys) > _ACCOUNTS_MAX:
            self._keys.popitem(last=False)
        return held


def _key_identity(account: str, version: int) -> Identity:
    return Identity(account, "account-key", "kek", version=version)


def _wrapping_identity(key: AccountKey, wrapping: Wrapping) -> Identity:
    if key.account != wrapping.account:
        raise OpenFailed
    return Identity(wrapping.account, wrapping.resource, "data-key:" + wrapping.purpose, wrapping.key_id)
