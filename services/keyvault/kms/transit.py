"""The transit engine of OpenBao or Vault, a derived key for each version of an account's key.

Transit derives the key of every wrapping from the account's key and the wrapping's context, so
that it opens in no other. A wrapped data key is 4 bytes of transit's key version, big-endian, and
the bytes that transit made; its text form is never kept, since one value has many spellings there.

Transit makes a key when it is asked to encrypt under one that is not there, so a key is looked up
before each wrapping. The token is read from its file whenever that changes; the proxy
and authorities of the environment are never used.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import ssl
import struct
from pathlib import Path
from typing import Any

import httpx

from services.common import ids
from services.common.errors import invalid
from services.common.sealing import KEY_BYTES, OpenFailed
from services.keyvault.kms.binding import Handle, context_of, handle_of
from services.keyvault.kms.faults import (
    KmsAccessDenied,
    KmsKeyDisabled,
    KmsKeyInvalid,
    KmsThrottled,
    KmsUnavailable,
)
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.records import AccountKey, Wrapping

_TYPES = frozenset({"aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
_REFERENCE = re.compile(r"(?P<mount>[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)/(?P<name>[A-Za-z0-9_.-]{1,128})")
_CIPHERTEXT = re.compile(r"vault:v(\d{1,9}):([A-Za-z0-9+/=]+)")
_ANSWER_BYTES_MAX = 64 * 1024
_CONNECTIONS = 16
_PROOF = "proof"


class TransitKms:
    """Account keys in transit."""

    provider = "transit"

    def __init__(
        self,
        url: str,
        mount: str,
        token_file: Path,
        *,
        ca_file: Path | None = None,
        namespace: str = "",
        timeout_s: float = 5.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._mount = mount.strip("/")
        self._namespace = namespace
        self._token_file = token_file
        self._token: tuple[tuple[int, int], str] = ((0, 0), "")
        self._http = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=str(ca_file)) if ca_file else True,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout_s / 2, connect=timeout_s / 3),
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            headers={"X-Vault-Request": "true", **({"X-Vault-Namespace": namespace} if namespace else {})},
        )

    @property
    def fingerprint(self) -> bytes:
        """Names the mount; its address may change."""
        return hashlib.sha256(f"transit\0{self._namespace}\0{self._mount}".encode()).digest()

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new transit key, whose name says which account it is for."""
        name = f"sealcomb-{account}-{version}-{ids.new_id()}"
        key = f"{self._mount}/{name}"
        body = {"type": "aes256-gcm96", "derived": True, "exportable": False, "allow_plaintext_backup": False}
        await self._ask("POST", _path(key, "keys"), body)
        return AccountKey(account, version, Handle(account, version, key).encode(), self.provider)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A key in some mount, once it has proved fit; its name must end with the account's id.

        By that name whoever made it says whose it is: keyvault's token may reach many customers' keys.
        """
        found = _REFERENCE.fullmatch(reference.key)
        if found is None:
            raise invalid("key", "is not a mount, a slash and the name of a key")
        if not found["name"].endswith(account):
            raise KmsKeyInvalid("the name of the transit key does not end with the account's id")
        if (await self._ask("GET", _path(reference.key, "keys")))["data"].get("exportable"):
            raise KmsKeyInvalid("the transit key is exportable; make one that is not")
        handle = Handle(account, version, reference.key, adopted=True)
        key = AccountKey(account, version, handle.encode(), self.provider)
        proof = Wrapping(account, _PROOF, _PROOF, _PROOF)
        secret = secrets.token_bytes(KEY_BYTES)
        if await self.unwrap(key, proof, await self.wrap(key, proof, secret)) != secret:
            raise KmsKeyInvalid
        return key

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key encrypted by transit under the key derived for its context."""
        handle, context = self._handle(key), _base64(context_of(key, wrapping))
        _check_fit((await self._ask("GET", _path(handle.key, "keys")))["data"])
        answer = await self._ask(
            "POST", _path(handle.key, "encrypt"), {"plaintext": _base64(secret), "context": context}
        )
        found = _CIPHERTEXT.fullmatch(str(answer["data"]["ciphertext"]))
        if found is None:
            raise KmsUnavailable
        return struct.pack(">I", int(found[1])) + base64.b64decode(found[2])

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key in a wrapping."""
        handle, context = self._handle(key), _base64(context_of(key, wrapping))
        version = struct.unpack(">I", wrapped[:4])[0] if len(wrapped) > 4 else 0
        # Transit takes version 0 for 1.
        if version < 1:
            raise OpenFailed
        ciphertext = f"vault:v{version}:{_base64(wrapped[4:])}"
        answer = await self._ask(
            "POST", _path(handle.key, "decrypt"), {"ciphertext": ciphertext, "context": context}
        )
        secret = base64.b64decode(answer["data"]["plaintext"])
        if len(secret) != KEY_BYTES:
            raise OpenFailed
        return secret

    async def destroy_key(self, key: AccountKey) -> None:
        """Deletes the key; an adopted one is left to its owner."""
        handle = self._handle(key)
        if handle.adopted:
            return
        try:
            await self._ask("POST", _path(handle.key, "keys") + "/config", {"deletion_allowed": True})
            await self._ask("DELETE", _path(handle.key, "keys"))
        except (KmsKeyInvalid, OpenFailed):
            return  # gone already

    def forget(self, account: str) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    def _handle(self, key: AccountKey) -> Handle:
        handle = handle_of(key)
        # Keys of our own are in our own mount, whatever the database says.
        if not handle.adopted and not handle.key.startswith(f"{self._mount}/sealcomb-{key.account}-"):
            raise OpenFailed
        return handle

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"X-Vault-Token": self._current_token()}
        try:
            answer = await self._http.request(method, f"{self._url}/v1/{path}", json=body, headers=headers)
            if answer.is_success:
                return answer.json() if answer.content else {}
            errors = " ".join(str(error) for error in answer.json().get("errors", []))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise KmsUnavailable(unheard=True) from None
        except (httpx.HTTPError, ValueError, AttributeError):
            raise KmsUnavailable from None
        raise _fault(answer.status_code, errors, answer.headers.get("retry-after", ""))

    def _current_token(self) -> str:
        try:
            state = self._token_file.stat()
            seen = (state.st_mtime_ns, state.st_ino)
            if seen != self._token[0]:
                self._token = (seen, self._token_file.read_text("ascii").strip())
        except (OSError, ValueError):
            raise KmsAccessDenied("keyvault cannot read its token of the KMS") from None
        return self._token[1]


def _check_fit(described: dict[str, Any]) -> None:
    if described.get("soft_deleted"):
        raise KmsKeyDisabled
    if described.get("type") not in _TYPES or not described.get("derived"):
        raise KmsKeyInvalid("the transit key is not a derived key for encryption")


def _fault(status: int, errors: str, retry_after: str) -> Exception:
    if status == 403:
        return KmsAccessDenied()
    if status == 429:
        return KmsThrottled(retry_after_s=min(float(retry_after), 60.0) if retry_after.isdecimal() else 0.0)
    if status >= 500 or status in {408, 412, 472, 473}:
        return KmsUnavailable()
    if status == 404 or "not found" in errors or "unsupported" in errors:
        return KmsKeyInvalid()
    if "soft-deleted" in errors or "soft deleted" in errors or "too old" in errors:
        return KmsKeyDisabled()
    # Every other refusal of a decryption, told apart by nobody.
    return OpenFailed()


def _path(key: str, verb: str) -> str:
    mount, _, name = key.rpartition("/")
    return f"{mount}/{verb}/{name}"


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
