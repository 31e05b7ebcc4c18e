"""AWS KMS, a key for each account: the account's data keys are wrapped by KMS itself.

Every version of an account's key is a KMS key of its own (a symmetric customer managed key), whose
ARN is the handle's key. The encryption context of a wrapping is {account, resource, purpose, key_id};
AWS writes it into CloudTrail, so each use of a data key can be seen there. Destroying a version
schedules the deletion of its KMS key after the shortest waiting period that AWS has, 7 days, during
which it works for nobody.

An adopted key is its owner's: it is used in the role that the owner made for it, and never changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from typing import Any

from services.common.sealing import KEY_BYTES, OpenFailed
from services.keyvault.kms.aws_client import AwsClient
from services.keyvault.kms.binding import Handle, encryption_context, handle_of
from services.keyvault.kms.faults import KmsKeyDisabled, KmsKeyInvalid
from services.keyvault.kms.protocol import WAIT_DAYS, KeyReference
from services.keyvault.records import AccountKey, Wrapping

_PROOF = "proof"


class AwsKms:
    """Account keys that are KMS keys."""

    provider = "aws"

    def __init__(self, client: AwsClient) -> None:
        self._client = client

    @property
    def fingerprint(self) -> bytes:
        """Names the AWS account and region."""
        return hashlib.sha256(f"aws\0{self._client.region}\0{self._client.account_id}".encode()).digest()

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new KMS key, tagged with the account and version that it is for."""
        arn = await self._client.create_key(
            Description="Sealcomb account key",
            KeyUsage="ENCRYPT_DECRYPT",
            KeySpec="SYMMETRIC_DEFAULT",
            Tags=[
                {"TagKey": "sealcomb:account", "TagValue": account},
                {"TagKey": "sealcomb:version", "TagValue": str(version)},
            ],
        )
        return AccountKey(account, version, Handle(account, version, arn).encode(), self.provider)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A customer's KMS key, once it is what is needed and has wrapped and unwrapped for us."""
        self._client.check_adopted(reference.key, reference.role)
        acting = {"role": reference.role, "account": account}
        check_fit((await self._client.call("describe_key", reference.key, **acting))["KeyMetadata"])
        handle = Handle(account, version, reference.key, reference.role, adopted=True)
        key = AccountKey(account, version, handle.encode(), self.provider)
        proof = Wrapping(account, _PROOF, _PROOF, _PROOF)
        secret = secrets.token_bytes(KEY_BYTES)
        if await self.unwrap(key, proof, await self.wrap(key, proof, secret)) != secret:
            raise KmsKeyInvalid
        return key

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key encrypted by the account's KMS key in its encryption context."""
        context = encryption_context(key, wrapping)
        answer = await self._call("encrypt", key, Plaintext=secret, EncryptionContext=context)
        return bytes(answer["CiphertextBlob"])

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key, decrypted by the account's KMS key and no other."""
        context = encryption_context(key, wrapping)
        if not wrapped:
            raise OpenFailed
        answer = await self._call("decrypt", key, CiphertextBlob=wrapped, EncryptionContext=context)
        if len(answer["Plaintext"]) != KEY_BYTES:
            raise OpenFailed
        return bytes(answer["Plaintext"])

    async def destroy_key(self, key: AccountKey) -> None:
        """Schedules the deletion of the KMS key; an adopted one is left to its owner."""
        if handle_of(key).adopted:
            return
        # Pending already, or gone.
        with contextlib.suppress(KmsKeyDisabled, KmsKeyInvalid):
            await self._call("schedule_key_deletion", key, PendingWindowInDays=WAIT_DAYS[self.provider])

    def forget(self, account: str) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Ends the client."""
        await self._client.close()

    async def _call(self, operation: str, key: AccountKey, **values: Any) -> Any:
        handle = handle_of(key)
        if handle.adopted:
            self._client.check_adopted(handle.key, handle.role)
            return await self._client.call(
                operation, handle.key, role=handle.role, account=handle.account, **values
            )
        self._client.check_own(handle.key)
        return await self._client.call(operation, handle.key, **values)


def check_fit(described: dict[str, Any]) -> None:
    """Raises for a KMS key, as DescribeKey shows it, that cannot wrap data keys now."""
    if described["KeyState"] in {"Disabled", "PendingDeletion", "PendingReplicaDeletion"}:
        raise KmsKeyDisabled
    if described["KeyState"] != "Enabled":
        raise KmsKeyInvalid("the KMS key is not ready for use")
    if described.get("KeySpec") != "SYMMETRIC_DEFAULT" or described.get("KeyUsage") != "ENCRYPT_DECRYPT":
        raise KmsKeyInvalid("the KMS key is not a symmetric key for encryption")
