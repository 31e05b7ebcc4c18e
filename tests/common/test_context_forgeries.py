"""Forged call contexts: the mistakes that signed tokens are known for (B13)."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import asdict
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.common.clock import SystemClock
from services.common.context import CallContext, ContextRefused, ContextSigner, ContextVerifier

_KEY, _OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def _context(issuer: str = "gateway") -> CallContext:
    now = SystemClock().now_s()
    return CallContext(
        issuer, ("vectorstore",), "victim", "t", ("read",), (), "/a/b", now, now + 30, "r",
        bearer="" if issuer == "gateway" else "ingest",
    )  # fmt: skip


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _verifier(key: Any = None) -> ContextVerifier:
    keys = {"gateway": key or _KEY.public_key(), "keyvault": key or _OTHER.public_key()}
    return ContextVerifier("vectorstore", keys, SystemClock())


def _forgeries() -> dict[str, str]:
    payload = json.dumps(asdict(_context())).encode()
    with_header = json.dumps(
        {**asdict(_context()), "alg": "none", "kid": "../../dev/null", "b64": False}
    ).encode()
    public = _KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    pem = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    right = ContextSigner(_KEY).sign(_context()).split(".")[1]
    return {
        "no signature": f"{_b64(payload)}.",
        "an algorithm of none": f"{_b64(with_header)}.",
        "three parts, as a JWT": f"{_b64(b'{}')}.{_b64(payload)}.",
        "zeros for a signature": f"{_b64(payload)}.{_b64(bytes(64))}",
        "an HMAC under the public key": f"{_b64(payload)}.{_b64(hmac.digest(public, payload, 'sha512'))}",
        "an HMAC under the PEM of it": f"{_b64(payload)}.{_b64(hmac.digest(pem, payload, 'sha512'))}",
        "a signature without the prefix": f"{_b64(payload)}.{_b64(_KEY.sign(payload))}",
        "another payload's signature": f"{_b64(payload)}.{right}",
        "another issuer's key": ContextSigner(_OTHER).sign(_context()),
        "a permit signed by the gateway": ContextSigner(_KEY).sign(_context("keyvault")),
    }


@pytest.mark.parametrize("name", _forgeries())
def test_no_forged_context_is_believed(name: str) -> None:
    with pytest.raises(ContextRefused):
        _verifier().verify(_forgeries()[name])
    assert _verifier().verify(ContextSigner(_KEY).sign(_context())).account == "victim"


def test_without_the_signatures_check_forgeries_would_be_believed() -> None:
    """The twin of the test above."""

    class Lenient:
        def verify(self, _signature: bytes, _data: bytes) -> None:
            return

    believed = _verifier(Lenient()).verify(_forgeries()["zeros for a signature"])
    assert believed.account == "victim"
