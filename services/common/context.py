"""The call context: who calls, signed by the edge for the services behind it.

A context is one line of ASCII: base64url(payload) "." base64url(signature), both unpadded. The
payload is a JSON object with the fields of CallContext; the signature is Ed25519 (RFC 8032) over
"sealcomb call context v1" NUL payload. It says issuer, audience, account, token, scopes, method
and expiry. A permit is the same thing issued by keyvault for work that outlives its call.

This module must never trust a byte before its signature, and never compare by anything but the
fields themselves: the account of every operation comes from here and from nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from services.common.clock import Clock
from services.common.errors import Unauthenticated
from services.common.secretfiles import read_secret_file

HEADER = "sealcomb-context"
GATEWAY = "gateway"
KEYVAULT = "keyvault"
_PREFIX = b"sealcomb call context v1\0"
_TEXT_BYTES_MAX = 8192
_KEY_FILE_BYTES_MAX = 4096
_SKEW_S = 5.0
# Longer lives are refused whoever signed them: a context lives for seconds, a permit for a job.
_CONTEXT_LIFE_S_MAX = 300.0
_PERMIT_LIFE_S_MAX = 3600.0
# What a grant is for and for how long: to be exchanged at keyvault, and nowhere else, for permits.
GRANT_AUDIENCE = "keyvault/renewal"
GRANT_LIFE_S_MAX = 400 * 86_400.0
_CACHE_ENTRIES_MAX = 4096


class ContextRefused(Unauthenticated):
    """A context is missing, malformed, forged, expired or meant for somebody else."""

    reason = "CONTEXT_REFUSED"

    def __init__(self, why: str) -> None:
        super().__init__("the call context was refused; call through the edge")
        self.why = why


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls and what for. `account` is empty for an operator."""

    issuer: str
    audience: tuple[str, ...]
    account: str
    token_id: str
    scopes: tuple[str, ...]
    collections: tuple[str, ...]
    method: str
    issued_s: float
    expires_s: float
    request_id: str
    job_id: str = ""
    # The one service that may use a permit; empty for a call context.
    bearer: str = ""
    # The only collections of a permit, by id: a permit is kept, so it holds no names.
    collection_ids: tuple[str, ...] = ()
    # How many calls of the account one service may have under way; 0: any number.
    calls_in_flight: int = 0


class ContextSigner:
    """Signs contexts with one issuer's private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> ContextSigner:
        """The signer whose PEM private key is in a file."""
        key = load_pem_private_key(read_secret_file(path, _KEY_FILE_BYTES_MAX), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path.name} is not an Ed25519 private key")
        return cls(key)

    def sign(self, context: CallContext) -> str:
        """The context as text."""
        payload = json.dumps(asdict(context), separators=(",", ":")).encode()
        return f"{_b64(payload)}.{_b64(self._key.sign(_PREFIX + payload))}"


class ContextVerifier:
    """Verifies contexts for one service, with the public keys of the issuers it trusts."""

    def __init__(
        self,
        audience: str,
        issuers: Mapping[str, Ed25519PublicKey],
        clock: Clock,
        permit_life_s_max: float = _PERMIT_LIFE_S_MAX,
    ) -> None:
        self._audience = audience
        self._issuers = dict(issuers)
        self._clock = clock
        self._permit_life_s_max = permit_life_s_max
        # A context serves many calls for some seconds; its signature is checked once.
        self._seen: OrderedDict[str, CallContext] = OrderedDict()

    @classmethod
    def from_folder(cls, audience: str, folder: Path, clock: Clock) -> ContextVerifier:
        """The verifier that trusts `gateway.pub.pem` and `keyvault.pub.pem` of a folder."""
        issuers = {}
        for issuer in (GATEWAY, KEYVAULT):
            key = load_pem_public_key((folder / f"{issuer}.pub.pem").read_bytes())
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError(f"{issuer}.pub.pem is not an Ed25519 public key")
            issuers[issuer] = key
        return cls(audience, issuers, clock)

    @classmethod
    def of_grants(cls, folder: Path, clock: Clock) -> ContextVerifier:
        """Keyvault's verifier of its own grants."""
        issuers = cls.from_folder(GRANT_AUDIENCE, folder, clock)._issuers
        return cls(GRANT_AUDIENCE, {KEYVAULT: issuers[KEYVAULT]}, clock, GRANT_LIFE_S_MAX)

    def verify(self, text: str) -> CallContext:
        """The context in a text. Raises ContextRefused."""
        context = self._seen.get(text)
        if context is None:
            context = self._parse(text)
            self._seen[text] = context
            if len(self._seen) > _CACHE_ENTRIES_MAX:
                self._seen.popitem(last=False)
        now = self._clock.now_s()
        if now >= context.expires_s:
            self._seen.pop(text, None)
            raise ContextRefused("expired")
        if context.issued_s > now + _SKEW_S:
            raise ContextRefused("issued in the future")
        if self._audience not in context.audience:
            raise ContextRefused("another audience")
        return context

    def _parse(self, text: str) -> CallContext:
        if len(text) > _TEXT_BYTES_MAX:
            raise ContextRefused("too long")
        try:
            payload_text, signature_text = text.split(".")
            payload, signature = _unb64(payload_text), _unb64(signature_text)
        except (ValueError, binascii.Error):
            raise ContextRefused("malformed") from None
        # The signer is found by trial, not by a claim in bytes that nobody has checked yet.
        for issuer, key in self._issuers.items():
            try:
                key.verify(signature, _PREFIX + payload)
            except InvalidSignature:
                continue
            return _from_payload(payload, issuer, self._permit_life_s_max)
        raise ContextRefused("bad signature")


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified context of the call in progress, and its text for passing on."""

    context: CallContext
    text: str


_current: ContextVar[Caller | None] = ContextVar("sealcomb_caller", default=None)


def current_caller() -> Caller:
    """The caller of the call in progress. Raises ContextRefused outside one."""
    caller = _current.get()
    if caller is None:
        raise ContextRefused("no call in progress")
    return caller


def current_account() -> str:
    """The account of the call in progress. Raises ContextRefused for an operator or outside a call."""
    account = current_caller().context.account
    if not account:
        raise ContextRefused("no account in the context")
    return account


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """Makes the caller current for the block, such as a job's permit."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)


def _from_payload(payload: bytes, issuer: str, permit_life_s_max: float) -> CallContext:
    try:
        fields = json.loads(payload)
        for name in ("audience", "scopes", "collections", "collection_ids"):
            fields[name] = tuple(fields[name])
        context = CallContext(**fields)
        life_s = context.expires_s - context.issued_s
    except (ValueError, TypeError, KeyError):
        # Signed, so perhaps by another version of the issuer.
        raise ContextRefused("fields of another version") from None
    if context.issuer != issuer:
        raise ContextRefused("another issuer's key")
    if bool(context.bearer) != (issuer == KEYVAULT):
        raise ContextRefused("permits come from keyvault, contexts from the gateway")
    # Written so that a NaN is refused too.
    if not 0 < life_s <= (permit_life_s_max if context.bearer else _CONTEXT_LIFE_S_MAX):
        raise ContextRefused("too long a life")
    return context


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
