"""What AWS KMS does with keys, strictly: states, encryption contexts, permissions, quotas.

Written from the AWS KMS API reference and its table of key states ("Key states of AWS KMS keys").
Where moto is right, the suite runs both side by side.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ACCOUNT = "111122223333"
REGION = "eu-central-1"
ROOT = "keyvault"


class Refused(Exception):
    """AWS's error by its code."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.status = status


@dataclass
class Key:
    """A KMS key."""

    arn: str
    spec: str = "SYMMETRIC_DEFAULT"
    usage: str = "ENCRYPT_DECRYPT"
    state: str = "Enabled"
    tags: dict[str, str] = field(default_factory=dict)
    material: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def id(self) -> str:
        """The key's id."""
        return self.arn.rsplit("/", 1)[1]

    def described(self) -> dict[str, Any]:
        """Its metadata."""
        return {
            "KeyId": self.id,
            "Arn": self.arn,
            "AWSAccountId": self.arn.split(":")[4],
            "Enabled": self.state == "Enabled",
            "KeyState": self.state,
            "KeySpec": self.spec,
            "KeyUsage": self.usage,
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
        }


@dataclass(frozen=True)
class Role:
    """An IAM role: who may assume it, and with which external id."""

    external_id: str


class AwsStates:
    """One region of KMS and its keys, in any number of AWS accounts."""

    def __init__(self, account: str = ACCOUNT, region: str = REGION) -> None:
        self.account = account
        self.region = region
        self.keys: dict[str, Key] = {}
        self.roles: dict[str, Role] = {}
        # (principal, ARN or "*", operation or "*")
        self.denied: set[tuple[str, str, str]] = set()
        # What a role's own key policy allows; our own principal may use our own account's keys.
        self.granted: set[tuple[str, str]] = set()
        self.sessions: dict[str, str] = {}

    def add_key(self, account: str = ACCOUNT, **values: Any) -> Key:
        """A key that somebody made."""
        key = Key(f"arn:aws:kms:{self.region}:{account}:key/{uuid.uuid4()}", **values)
        self.keys[key.arn] = key
        return key

    def perform(self, principal: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a call. Raises Refused."""
        action = getattr(self, "_" + operation, None)
        if action is None:
            raise Refused("UnknownOperationException")
        if operation == "CreateKey":
            self._permit(principal, operation, None)
            return self._CreateKey(body)
        if operation == "ReEncrypt":
            self._permit(principal, "ReEncryptFrom", self._find(body["SourceKeyId"]))
            self._permit(principal, "ReEncryptTo", self._find(body["DestinationKeyId"]))
            return self._ReEncrypt(body)
        key = self._find(body.get("KeyId", "")) if "KeyId" in body else self._of_blob(body)
        self._permit(principal, operation, key)
        answer: dict[str, Any] = action(key, body)
        return answer

    def assume(self, role: str, external_id: str) -> str:
        """The access key of a session in a role. Raises Refused."""
        known = self.roles.get(role)
        if known is None or known.external_id != external_id:
            raise Refused("AccessDenied", 403)
        access_key = "ASIA" + secrets.token_hex(8).upper()
        self.sessions[access_key] = role
        return access_key

    def _permit(self, principal: str, operation: str, key: Key | None) -> None:
        arn = "*" if key is None else key.arn
        for who, what, action in self.denied:
            if who == principal and what in {arn, "*"} and action in {operation, "*"}:
                raise Refused("AccessDeniedException")
        is_own = key is None or key.arn.split(":")[4] == self.account
        if not (is_own if principal == ROOT else (principal, arn) in self.granted):
            raise Refused("AccessDeniedException")

    def _find(self, name: str) -> Key:
        if name.startswith("arn:") and name.split(":")[3] != self.region:
            raise Refused("NotFoundException")
        key = self.keys.get(name) or self.keys.get(f"arn:aws:kms:{self.region}:{self.account}:key/{name}")
        if key is None:
            raise Refused("NotFoundException")
        return key

    def _of_blob(self, body: dict[str, Any]) -> Key:
        blob = _bytes(body, "CiphertextBlob")
        if len(blob) < 16:
            raise Refused("InvalidCiphertextException")
        return self._find(str(uuid.UUID(bytes=blob[:16])))

    def _CreateKey(self, body: dict[str, Any]) -> dict[str, Any]:
        key = self.add_key(
            self.account,
            spec=body.get("KeySpec", "SYMMETRIC_DEFAULT"),
            usage=body.get("KeyUsage", "ENCRYPT_DECRYPT"),
            tags={tag["TagKey"]: tag["TagValue"] for tag in body.get("Tags", [])},
        )
        return {"KeyMetadata": key.described()}

    def _DescribeKey(self, key: Key, _body: dict[str, Any]) -> dict[str, Any]:
        return {"KeyMetadata": key.described()}

    def _Encrypt(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        _usable(key)
        plain = _bytes(body, "Plaintext")
        if not 1 <= len(plain) <= 4096:
            raise Refused("ValidationException")
        return {"KeyId": key.arn, "CiphertextBlob": _text(_encrypt(key, plain, _context(body)))}

    def _Decrypt(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        _usable(key)
        blob = _bytes(body, "CiphertextBlob")
        if not 1 <= len(blob) <= 6144:
            raise Refused("ValidationException")
        plain = _decrypt(key, blob, _context(body))
        return {"KeyId": key.arn, "Plaintext": _text(plain)}

    def _GenerateDataKey(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        _usable(key)
        plain = secrets.token_bytes(body.get("NumberOfBytes", 32))
        blob = _encrypt(key, plain, _context(body))
        return {"KeyId": key.arn, "Plaintext": _text(plain), "CiphertextBlob": _text(blob)}

    def _ReEncrypt(self, body: dict[str, Any]) -> dict[str, Any]:
        source, destination = self._find(body["SourceKeyId"]), self._find(body["DestinationKeyId"])
        _usable(source)
        _usable(destination)
        blob = _bytes(body, "CiphertextBlob")
        plain = _decrypt(source, blob, _context(body, "SourceEncryptionContext"))
        blob = _encrypt(destination, plain, _context(body, "DestinationEncryptionContext"))
        return {"KeyId": destination.arn, "SourceKeyId": source.arn, "CiphertextBlob": _text(blob)}

    def _DisableKey(self, key: Key, _body: dict[str, Any]) -> dict[str, Any]:
        _changeable(key)
        key.state = "Disabled"
        return {}

    def _EnableKey(self, key: Key, _body: dict[str, Any]) -> dict[str, Any]:
        _changeable(key)
        key.state = "Enabled"
        return {}

    def _ScheduleKeyDeletion(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        days = body.get("PendingWindowInDays", 30)
        if not 7 <= days <= 30:
            raise Refused("ValidationException")
        _changeable(key)
        key.state = "PendingDeletion"
        return {"KeyId": key.arn, "KeyState": key.state, "PendingWindowInDays": days}

    def _CancelKeyDeletion(self, key: Key, _body: dict[str, Any]) -> dict[str, Any]:
        if key.state != "PendingDeletion":
            raise Refused("KMSInvalidStateException")
        key.state = "Disabled"
        return {"KeyId": key.arn}


def _usable(key: Key) -> None:
    if key.state == "Disabled":
        raise Refused("DisabledException")
    if key.state != "Enabled":
        raise Refused("KMSInvalidStateException")
    if key.usage != "ENCRYPT_DECRYPT" or key.spec != "SYMMETRIC_DEFAULT":
        raise Refused("InvalidKeyUsageException")


def _changeable(key: Key) -> None:
    if key.state == "PendingDeletion":
        raise Refused("KMSInvalidStateException")


def _context(body: dict[str, Any], name: str = "EncryptionContext") -> bytes:
    return json.dumps(body.get(name, {}), sort_keys=True).encode()


def _encrypt(key: Key, plain: bytes, context: bytes) -> bytes:
    nonce = secrets.token_bytes(12)
    head = uuid.UUID(key.id).bytes
    return head + nonce + AESGCM(key.material).encrypt(nonce, plain, head + context)


def _decrypt(key: Key, blob: bytes, context: bytes) -> bytes:
    if len(blob) < 44:
        raise Refused("InvalidCiphertextException")
    if blob[:16] != uuid.UUID(key.id).bytes:
        raise Refused("IncorrectKeyException")
    try:
        return AESGCM(key.material).decrypt(blob[16:28], blob[28:], blob[:16] + context)
    except InvalidTag:
        raise Refused("InvalidCiphertextException") from None


def _bytes(body: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(body[name])


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
