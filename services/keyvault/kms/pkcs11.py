"""A PKCS#11 token (a hardware security module): an AES key for each version of an account's key.

Keys are made in the token, sensitive and not extractable: this process only ever has handles of
them. A data key is wrapped by AES-256-GCM with its context as associated data; a wrapped one is 12
bytes of nonce and what the token made of it, the 16 bytes of tag last. Nonces are random, so
one account key must wrap far fewer than 2^32 data keys (NIST SP 800-38D, 8.3); an account has at
most 100,000.

The module is called by one thread, which alone owns the session. A PIN that was refused is not
tried again until its file changes, since a few wrong ones lock a token for good.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as errors

from services.common import ids
from services.common.sealing import KEY_BYTES, OpenFailed
from services.keyvault.kms.binding import Handle, context_of, handle_of
from services.keyvault.kms.faults import KmsAccessDenied, KmsKeyInvalid, KmsUnavailable
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.records import AccountKey, Wrapping

_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEYS_MAX = 10_000
_OWN = "sealcomb-"
_PROOF = "proof"
_PIN_REFUSED = (
    errors.PinIncorrect,
    errors.PinInvalid,
    errors.PinLenRange,
    errors.PinLocked,
    errors.PinExpired,
)
_SESSION_LOST = (
    errors.DeviceError,
    errors.DeviceRemoved,
    errors.SessionClosed,
    errors.SessionHandleInvalid,
    errors.TokenNotPresent,
    errors.UserNotLoggedIn,
)
_Result = TypeVar("_Result")


class Pkcs11Kms:
    """Account keys in a PKCS#11 token."""

    provider = "pkcs11"

    def __init__(
        self,
        module: Path,
        token: str,
        pin_file: Path,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._module = module
        self._token = token
        self._pin_file = pin_file
        self._random_bytes = random_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pkcs11")
        self._session: Any = None
        self._keys: OrderedDict[str, Any] = OrderedDict()
        self._refused_pin = b""

    @property
    def fingerprint(self) -> bytes:
        """Names the token."""
        return hashlib.sha256(b"pkcs11\0" + self._token.encode()).digest()

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new key in the token, whose label says which account it is for."""
        label = f"{_OWN}{account}-{version}-{ids.new_id()}"
        await self._run(partial(self._generate, label))
        return AccountKey(account, version, Handle(account, version, label).encode(), self.provider)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A key that is in the token, once it has proved fit; its label must end with the account's id.

        By that label whoever made it says whose it is.
        """
        if not reference.key.endswith(account) or reference.key.startswith(_OWN):
            raise KmsKeyInvalid("the label of the key does not end with the account's id")
        handle = Handle(account, version, reference.key, adopted=True)
        key = AccountKey(account, version, handle.encode(), self.provider)
        await self._run(partial(self._check_fit, reference.key))
        proof = Wrapping(account, _PROOF, _PROOF, _PROOF)
        secret = self._random_bytes(KEY_BYTES)
        if await self.unwrap(key, proof, await self.wrap(key, proof, secret)) != secret:
            raise KmsKeyInvalid
        return key

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A data key encrypted inside the token, bound to its context."""
        nonce = self._random_bytes(_NONCE_BYTES)
        work = partial(self._encrypt, self._label(key), nonce, context_of(key, wrapping), secret)
        return nonce + await self._run(work)

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The data key in a wrapping."""
        label, context = self._label(key), context_of(key, wrapping)
        if len(wrapped) != _NONCE_BYTES + KEY_BYTES + _TAG_BYTES:
            raise OpenFailed
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        return await self._run(partial(self._decrypt, label, nonce, context, sealed))

    async def destroy_key(self, key: AccountKey) -> None:
        """Destroys the key in the token; an adopted one is left to its owner."""
        label = self._label(key)
        if not handle_of(key).adopted:
            await self._run(partial(self._destroy, label))

    def forget(self, account: str) -> None:
        """Nothing secret is held."""

    async def close(self) -> None:
        """Ends the session and its thread."""
        self._thread.submit(self._drop_session)
        self._thread.shutdown(wait=False)

    def _label(self, key: AccountKey) -> str:
        handle = handle_of(key)
        if not handle.adopted and not handle.key.startswith(f"{_OWN}{key.account}-"):
            raise OpenFailed
        return handle.key

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._named, work)

    # What follows runs in the thread.

    def _named(self, work: Callable[[], _Result]) -> _Result:
        try:
            return work()
        except errors.NoSuchKey:
            raise KmsKeyInvalid from None
        except (errors.MultipleObjectsReturned, errors.KeyTypeInconsistent, errors.MechanismInvalid):
            raise KmsKeyInvalid("the key in the token is not fit for use") from None
        except _PIN_REFUSED:
            raise KmsAccessDenied("the token refuses keyvault's PIN; correct its file") from None
        except errors.NoSuchToken:
            raise KmsUnavailable(unheard=True) from None
        except errors.PKCS11Error:
            # Whatever it was, the next call begins with a session of its own.
            self._drop_session()
            raise KmsUnavailable from None

    def _generate(self, label: str) -> None:
        self._opened().generate_key(
            KeyType.AES,
            256,
            id=hashlib.sha256(label.encode()).digest()[:16],
            label=label,
            store=True,
            template={
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.ENCRYPT: True,
                Attribute.DECRYPT: True,
                Attribute.WRAP: False,
                Attribute.UNWRAP: False,
            },
        )

    def _check_fit(self, label: str) -> None:
        key = self._key(label)
        is_aes = key[Attribute.KEY_TYPE] == KeyType.AES and key[Attribute.VALUE_LEN] == KEY_BYTES
        if not is_aes or not key[Attribute.ENCRYPT] or not key[Attribute.DECRYPT]:
            raise KmsKeyInvalid("the key in the token is not an AES-256 key for encryption")
        if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]:
            raise KmsKeyInvalid("the key in the token can be taken out of it")

    def _encrypt(self, label: str, nonce: bytes, context: bytes, secret: bytes) -> bytes:
        return self._with_key(label, lambda key: bytes(key.encrypt(secret, **_gcm(nonce, context))))

    def _decrypt(self, label: str, nonce: bytes, context: bytes, sealed: bytes) -> bytes:
        try:
            return self._with_key(label, lambda key: bytes(key.decrypt(sealed, **_gcm(nonce, context))))
        except (errors.EncryptedDataInvalid, errors.EncryptedDataLenRange):
            raise OpenFailed from None
        except (errors.GeneralError, errors.FunctionFailed):
            # Some tokens say no more than this of a wrong tag: a token that still works means that.
            self._encrypt(label, self._random_bytes(_NONCE_BYTES), b"", bytes(KEY_BYTES))
            raise OpenFailed from None

    def _destroy(self, label: str) -> None:
        try:
            self._with_key(label, lambda key: key.destroy())
        except errors.NoSuchKey:
            return
        finally:
            self._keys.pop(label, None)

    def _with_key(self, label: str, use: Callable[[Any], _Result]) -> _Result:
        try:
            return use(self._key(label))
        except (errors.KeyHandleInvalid, errors.ObjectHandleInvalid):
            # Gone, or a session ago.
            self._keys.pop(label, None)
        except _SESSION_LOST:
            self._drop_session()
        return use(self._key(label))

    def _key(self, label: str) -> Any:
        session = self._opened()
        key = self._keys.get(label)
        if key is None:
            key = _only_key(session, label)
            self._keys[label] = key
            if len(self._keys) > _KEYS_MAX:
                self._keys.popitem(last=False)
        return key

    def _opened(self) -> Any:
        if self._session is None:
            pin = self._pin()
            refused = hashlib.sha256(pin).digest()
            if refused == self._refused_pin:
                raise KmsAccessDenied("the token refuses keyvault's PIN; correct its file")
            token = pkcs11.lib(str(self._module)).get_token(token_label=self._token)
            try:
                self._session = token.open(rw=True, user_pin=pin.decode("utf-8", "replace"))
            except errors.UserAlreadyLoggedIn:
                # A login is the process's, not the session's.
                self._session = token.open(rw=True)
            except _PIN_REFUSED:
                self._refused_pin = refused
                raise
        return self._session

    def _pin(self) -> bytes:
        try:
            return self._pin_file.read_bytes().rstrip(b"\r\n")
        except OSError:
            raise KmsAccessDenied("keyvault cannot read the file of the token's PIN") from None

    def _drop_session(self) -> None:
        self._keys.clear()
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except errors.PKCS11Error:
                return  # it was lost, not open


def _only_key(session: Any, label: str) -> Any:
    # The search is read to its end here: one left open holds the session's lock until it is
    # collected, in whichever thread that happens, where the lock cannot be released.
    template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label}
    found = list(session.get_objects(template))
    if not found:
        raise errors.NoSuchKey
    if len(found) > 1:
        raise errors.MultipleObjectsReturned
    return found[0]


def _gcm(nonce: bytes, context: bytes) -> dict[str, Any]:
    return {
        "mechanism": Mechanism.AES_GCM,
        "mechanism_param": pkcs11.GCMParams(nonce=nonce, aad=context, tag_bits=8 * _TAG_BYTES),
    }
