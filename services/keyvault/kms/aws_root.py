"""AWS KMS, one root key: each account's key is wrapped by it, with the account in the encryption context.

For many small accounts: a KMS key for each costs money every month, this costs one. An account
key is 16 bytes of id and 32 of key, as the file KMS has them; its handle keeps what KMS encrypted,
and data keys are wrapped under it in this process. Destroying a version is deleting its handle.

Unwrapped account keys are held for a bounded time, so that the root key's being turned off in KMS
takes effect within that time; they must never leave this module.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from services.common import ids
from services.common.clock import Clock
from services.common.errors import invalid
from services.common.sealing import KEY_BYTES, DataKey, Identity, OpenFailed, open_sealed, seal
from services.keyvault.kms.aws_client import AwsClient
from services.keyvault.kms.binding import Handle, handle_of
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.records import AccountKey, Wrapping

_ID_BYTES = 16
_KEYS_MAX = 10_000
HELD_S = 30.0


@dataclass(frozen=True, slots=True)
class _Held:
    key: DataKey
    until_s: float


class AwsRootKms:
    """Account keys under one KMS key."""

    provider = "aws-root"

    def __init__(
        self,
        client: AwsClient,
        root_arn: str,
        clock: Clock,
        held_s: float = HELD_S,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        client.check_own(root_arn)
        self._client = client
        self._root_arn = root_arn
        self._clock = clock
        self._held_s = held_s
        self._random_bytes = random_bytes
        self._keys: OrderedDict[AccountKey, _Held] = OrderedDict()

    @property
    def fingerprint(self) -> bytes:
        """Names the root key."""
        return hashlib.sha256(b"aws-root\0" + self._root_arn.encode()).digest()

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new account key, wrapped by the root key."""
        plain = self._random_bytes(_ID_BYTES + KEY_BYTES)
        answer = await self._client.call(
            "encrypt", self._root_arn, Plaintext=plain, EncryptionContext=_context(account, version)
        )
        kept = base64.b64encode(answer["CiphertextBlob"]).decode()
        handle = Handle(account, version, self._root_arn, kept=kept)
        return AccountKey(account, version, handle.encode(), self.provider)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """Refused: this KMS has its one root key."""
        raise invalid("provider", "takes no keys of others; use aws")

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key sealed under the account key."""
        return seal(await self._unwrapped(key), _identity(key, wrapping), secret)

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key in a wrapping."""
        secret = open_sealed(await self._unwrapped(key), _identity(key, wrapping), wrapped)
        if len(secret) != KEY_BYTES:
            raise OpenFailed
        return secret

    async def destroy_key(self, key: AccountKey) -> None:
        """Forgets an account key for good: the store deletes its handle, and nothing else holds it."""
        self._keys.pop(key, None)

    def forget(self, account: str) -> None:
        """Drops the account's unwrapped keys."""
        for key in [key for key in self._keys if key.account == account]:
            del self._keys[key]

    async def close(self) -> None:
        """Drops every unwrapped key and ends the client."""
        self._keys.clear()
        await self._client.close()

    async def _unwrapped(self, key: AccountKey) -> DataKey:
        # From before the call, so that no key is held longer than it says.
        now_s = self._clock.monotonic_s()
        held = self._keys.get(key)
        if held is not None and now_s < held.until_s:
            self._keys.move_to_end(key)
            return held.key
        handle = handle_of(key)
        # The root key of the settings, never one that the database names.
        answer = await self._client.call(
            "decrypt",
            self._root_arn,
            CiphertextBlob=_decoded(handle.kept),
            EncryptionContext=_context(key.account, key.version),
        )
        plain = answer["Plaintext"]
        if len(plain) != _ID_BYTES + KEY_BYTES:
            raise OpenFailed
        unwrapped = DataKey(ids.from_bytes(plain[:_ID_BYTES]), plain[_ID_BYTES:])
        self._keys[key] = _Held(unwrapped, now_s + self._held_s)
        self._keys.move_to_end(key)
        while self._keys and (
            len(self._keys) > _KEYS_MAX or next(iter(self._keys.values())).until_s <= now_s
        ):
            self._keys.popitem(last=False)
        return unwrapped


def _context(account: str, version: int) -> dict[str, str]:
    return {"account": account, "resource": "account-key", "purpose": "kek", "key_id": str(version)}


def _identity(key: AccountKey, wrapping: Wrapping) -> Identity:
    if key.account != wrapping.account:
        raise OpenFailed
    return Identity(wrapping.account, wrapping.resource, "data-key:" + wrapping.purpose, wrapping.key_id)


def _decoded(kept: str) -> bytes:
    try:
        return base64.b64decode(kept, validate=True)
    except ValueError:
        raise OpenFailed from None
