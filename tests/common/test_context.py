"""Call contexts and permits: forged, replayed, stretched and borrowed ones are refused (C5, C6)."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from services.common import context as contexts
from services.common.context import (
    CallContext,
    Caller,
    ContextRefused,
    ContextSigner,
    ContextVerifier,
    acting_as,
    current_account,
    current_caller,
)
from services.common.methods import SERVICES

_GATEWAY, _KEYVAULT, _STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))
_ISSUERS = {"gateway": _GATEWAY.public_key(), "keyvault": _KEYVAULT.public_key()}
_CONTEXT = CallContext(
    "gateway",
    ("vectorstore", "keyvault"),
    "account",
    "token",
    ("read",),
    (),
    "/sealcomb.v1.VectorService/Query",
    1000.0,
    1030.0,
    "request",
)
_PERMIT = replace(
    _CONTEXT, issuer="keyvault", audience=("keyvault",), expires_s=2000.0, job_id="job", bearer="ingest"
)


class _Clock:
    def __init__(self, now_s: float = 1010.0) -> None:
        self.time_s = now_s

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s


def _verifier(audience: str = "keyvault", clock: _Clock | None = None) -> ContextVerifier:
    return ContextVerifier(audience, _ISSUERS, clock or _Clock())


def _sign(context: CallContext, key: Ed25519PrivateKey = _GATEWAY) -> str:
    return ContextSigner(key).sign(context)


def _sign_fields(**fields: Any) -> str:
    payload = json.dumps({**asdict(_CONTEXT), **fields}).encode()
    return f"{_b64(payload)}.{_b64(_GATEWAY.sign(b'sealcomb call context v1' + bytes(1) + payload))}"


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _why(verifier: ContextVerifier, text: str) -> str:
    with pytest.raises(ContextRefused) as caught:
        verifier.verify(text)
    assert caught.value.message == ContextRefused("").message
    return caught.value.why


def test_a_context_says_what_was_signed_every_time() -> None:
    verifier, text = _verifier(), _sign(_CONTEXT)
    assert verifier.verify(text) == verifier.verify(text) == _CONTEXT
    assert _verifier().verify(_sign(_PERMIT, _KEYVAULT)) == _PERMIT


def test_only_the_named_audiences_accept_a_context() -> None:
    """C6: the cross product of services and audiences."""
    for audience in SERVICES:
        text = _sign(replace(_CONTEXT, audience=(audience,)))
        for service in SERVICES:
            if service == audience:
                assert _verifier(service).verify(text).audience == (audience,)
            else:
                assert _why(_verifier(service), text) == "another audience"
    assert _why(_verifier(), _sign(replace(_CONTEXT, audience=()))) == "another audience"
    assert _why(_verifier(), _sign(replace(_CONTEXT, audience=("keyvaults", "key")))) == "another audience"


def test_a_context_works_until_it_expires_and_not_a_moment_longer() -> None:
    """C5: also one that this verifier has seen and keeps."""
    clock = _Clock()
    verifier, text = _verifier(clock=clock), _sign(_CONTEXT)
    verifier.verify(text)
    clock.time_s = 1029.9
    verifier.verify(text)
    for late_s in (1030.0, 1031.0, 1e9):
        clock.time_s = late_s
        assert _why(verifier, text) == "expired"
    clock.time_s = 1010.0
    verifier.verify(text)


def test_an_expired_context_passes_once_time_stands_still() -> None:
    """C5's twin: the clock is what refuses it."""
    assert _why(_verifier(clock=_Clock(1031.0)), _sign(_CONTEXT)) == "expired"
    assert _verifier(clock=_Clock(1029.0)).verify(_sign(_CONTEXT)) == _CONTEXT


def test_a_context_from_the_future_is_refused_beyond_a_small_skew() -> None:
    assert _verifier(clock=_Clock(996.0)).verify(_sign(_CONTEXT)) == _CONTEXT
    assert _why(_verifier(clock=_Clock(994.0)), _sign(_CONTEXT)) == "issued in the future"


@pytest.mark.parametrize("expires_s", [1301.0, 1e12, 1000.0, 999.0, float("inf"), float("nan")])
def test_no_signer_can_stretch_a_life(expires_s: float) -> None:
    clock = _Clock(1000.0)
    assert _why(_verifier(clock=clock), _sign(replace(_CONTEXT, expires_s=expires_s))) == "too long a life"
    permit = replace(_PERMIT, expires_s=expires_s + 3300)
    if expires_s > 1300:
        assert _why(_verifier(clock=clock), _sign(permit, _KEYVAULT)) == "too long a life"


def test_a_stranger_signs_nothing_and_an_issuer_only_in_its_own_name() -> None:
    assert _why(_verifier(), _sign(_CONTEXT, _STRANGER)) == "bad signature"
    assert _why(_verifier(), _sign(_CONTEXT, _KEYVAULT)) == "another issuer's key"
    assert _why(_verifier(), _sign(_PERMIT, _GATEWAY)) == "another issuer's key"


def test_permits_and_contexts_are_not_mistaken_for_one_another() -> None:
    confused = "permits come from keyvault, contexts from the gateway"
    assert _why(_verifier(), _sign(replace(_CONTEXT, bearer="ingest"))) == confused
    assert _why(_verifier(), _sign(replace(_PERMIT, bearer=""), _KEYVAULT)) == confused


def test_a_signature_made_for_something_else_is_no_context() -> None:
    payload = json.dumps(asdict(_CONTEXT)).encode()
    assert _why(_verifier(), f"{_b64(payload)}.{_b64(_GATEWAY.sign(payload))}") == "bad signature"


def test_a_forged_context_passes_once_signatures_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """C5's twin: with verification off, a stranger's context is accepted."""

    class _Credulous:
        def verify(self, _signature: bytes, _data: bytes) -> None:
            """Accepts everything."""

    forged = _sign(_CONTEXT, _STRANGER)
    assert _why(_verifier(), forged) == "bad signature"
    verifier = _verifier()
    monkeypatch.setattr(verifier, "_issuers", {"gateway": _Credulous()})
    assert verifier.verify(forged) == _CONTEXT


def test_no_changed_character_passes() -> None:
    verifier, text = _verifier(), _sign(_CONTEXT)
    for at, char in enumerate(text):
        changed = text[:at] + ("A" if char != "A" else "B") + text[at + 1 :]
        try:
            accepted = verifier.verify(changed)
        except ContextRefused:
            continue
        # The last character of base64 has spare bits: another spelling of the same signature.
        assert at == len(text) - 1
        assert accepted == _CONTEXT


@given(st.text(max_size=300))
def test_made_up_texts_are_refused(text: str) -> None:
    assert _why(_verifier(), text) in {"malformed", "bad signature"}


@pytest.mark.parametrize("text", ["", ".", "a.b.c", "a" * 8193, "\0.\0", "é.é", "AAAA=.AAAA"])
def test_odd_texts_are_refused(text: str) -> None:
    assert _why(_verifier(), text) in {"malformed", "bad signature", "too long"}


def test_signed_fields_of_another_version_are_refused() -> None:
    assert _why(_verifier(), _sign_fields(color="red")) == "fields of another version"
    assert _why(_verifier(), _sign_fields(audience=None)) == "fields of another version"
    assert _why(_verifier(), _sign_fields(expires_s="never")) == "fields of another version"
    text = f"{_b64(b'{')}.{_b64(_GATEWAY.sign(b'sealcomb call context v1' + bytes(1) + b'{'))}"
    assert _why(_verifier(), text) == "fields of another version"


def test_the_memory_of_seen_contexts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "_CACHE_ENTRIES_MAX", 10)
    verifier = _verifier()
    for number in range(50):
        verifier.verify(_sign(replace(_CONTEXT, request_id=str(number))))
    assert len(verifier._seen) == 10


async def test_the_caller_is_current_inside_its_block_alone() -> None:
    with pytest.raises(ContextRefused):
        current_caller()
    mine, other = (Caller(replace(_CONTEXT, account=account), account) for account in ("mine", "other"))

    async def account_of(caller: Caller) -> str:
        with acting_as(caller):
            await asyncio.sleep(0)
            return current_account()

    found = await asyncio.gather(account_of(mine), account_of(other))
    assert list(found) == ["mine", "other"]
    with acting_as(mine):
        with acting_as(other):
            assert current_account() == "other"
        assert current_account() == "mine"
    with acting_as(Caller(replace(_CONTEXT, account=""), "")), pytest.raises(ContextRefused):
        current_account()
    with pytest.raises(ContextRefused):
        current_account()


def test_keys_come_from_files_of_the_right_kind(tmp_path: Path) -> None:
    for name, key in (("gateway", _GATEWAY), ("keyvault", _KEYVAULT)):
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub.pem").write_bytes(public)
    private = tmp_path / "gateway.key.pem"
    private.write_bytes(_GATEWAY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o644)
    with pytest.raises(ValueError, match="open to others"):
        ContextSigner.from_file(private)
    private.chmod(0o600)
    verifier = ContextVerifier.from_folder("keyvault", tmp_path, _Clock())
    assert verifier.verify(ContextSigner.from_file(private).sign(_CONTEXT)) == _CONTEXT

    wrong = generate_private_key(SECP256R1())
    private.write_bytes(wrong.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ValueError, match="not an Ed25519"):
        ContextSigner.from_file(private)
    public = wrong.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "keyvault.pub.pem").write_bytes(public)
    with pytest.raises(ValueError, match="not an Ed25519"):
        ContextVerifier.from_folder("keyvault", tmp_path, _Clock())
