"""Transit on a real OpenBao over TLS: what it does by itself, and what is kept from it (D8, D9, D14)."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from services.common import ids
from services.common.errors import InvalidArgument
from services.common.sealing import OpenFailed
from services.keyvault.kms import transit
from services.keyvault.kms.binding import handle_of
from services.keyvault.kms.faults import (
    KmsAccessDenied,
    KmsKeyDisabled,
    KmsKeyInvalid,
    KmsThrottled,
    KmsUnavailable,
)
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.kms.transit import TransitKms
from services.keyvault.records import Wrapping
from tests.keyvault.kms.peers import Bao

_ACCOUNT = ids.from_bytes(b"account of tests")
_SECRET = bytes(range(32))
_WRAPPING = Wrapping(_ACCOUNT, ids.from_bytes(b"resource of test"), "collection", ids.from_bytes(bytes(16)))


async def test_a_key_that_was_deleted_is_not_made_again_by_a_wrapping(bao: Bao) -> None:
    kms = bao.kms()
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    await kms.destroy_key(key)
    for use in (kms.wrap(key, _WRAPPING, _SECRET), kms.unwrap(key, _WRAPPING, wrapped)):
        with pytest.raises(KmsKeyInvalid):
            await use
    with pytest.raises(httpx.HTTPStatusError):
        bao.ask("GET", transit._path(handle_of(key).key, "keys"))
    await kms.close()


async def test_transit_itself_makes_a_key_that_is_not_there(bao: Bao) -> None:
    """The twin: an administrator's token may, and without the look-up before it a wrapping would."""
    name = "not-there-" + ids.new_id()
    bao.ask("POST", f"transit/encrypt/{name}", plaintext="AAAA", context="AAAA")
    assert bao.ask("GET", f"transit/keys/{name}")["data"]["derived"]


async def test_keys_never_leave_transit(bao: Bao) -> None:
    kms = bao.kms()
    key = await kms.new_key(_ACCOUNT, 1)
    described = bao.ask("GET", transit._path(handle_of(key).key, "keys"))["data"]
    assert (described["exportable"], described["allow_plaintext_backup"], described["derived"]) == (
        False,
        False,
        True,
    )
    await kms.close()


async def test_a_version_that_has_two_spellings_has_one_here(bao: Bao) -> None:
    """D23: transit takes v0 for v1."""
    kms = bao.kms()
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    assert struct.unpack(">I", wrapped[:4])[0] == 1
    for head in (bytes(4), b"\xff\xff\xff\xff"):
        with pytest.raises(OpenFailed):
            await kms.unwrap(key, _WRAPPING, head + wrapped[4:])
    await kms.close()


async def test_a_handle_to_a_key_of_another_account_or_mount_is_refused(bao: Bao) -> None:
    """D8: whoever writes the database cannot choose the key."""
    kms = bao.kms()
    key = await kms.new_key(_ACCOUNT, 1)
    foreign = await kms.new_key(ids.new_id(), 1)
    for name in (handle_of(foreign).key, "other/" + handle_of(key).key, "transit/x"):
        moved = replace(key, handle=replace(handle_of(key), key=name).encode())
        with pytest.raises(OpenFailed):
            await kms.wrap(moved, _WRAPPING, _SECRET)
    await kms.close()


async def test_what_the_token_may_not_do_is_denied_and_a_new_token_is_read(bao: Bao, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("s.wrong")
    kms = TransitKms(bao.url, "transit", token_file, ca_file=bao.ca_file)
    with pytest.raises(KmsAccessDenied):
        await kms.new_key(_ACCOUNT, 1)
    replaced = tmp_path / "new"
    replaced.write_text(bao.token_file.read_text())
    replaced.rename(token_file)
    await kms.new_key(_ACCOUNT, 1)
    token_file.unlink()
    with pytest.raises(KmsAccessDenied, match="cannot read its token"):
        await kms.new_key(_ACCOUNT, 1)
    await kms.close()


async def test_a_server_that_cannot_prove_itself_gets_no_token(
    bao: Bao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's authorities and proxies count for nothing either way."""
    monkeypatch.setenv("SSL_CERT_FILE", str(bao.ca_file))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    stranger = bao.kms(ca_file=None)
    with pytest.raises(KmsUnavailable):
        await stranger.new_key(_ACCOUNT, 1)
    await stranger.close()
    kms = bao.kms()
    await kms.new_key(_ACCOUNT, 1)
    await kms.close()


async def test_an_unreachable_server_is_not_a_disabled_key(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    kms = TransitKms("https://127.0.0.1:9", "transit", tmp_path / "token")
    with pytest.raises(KmsUnavailable) as refusal:
        await kms.new_key(_ACCOUNT, 1)
    assert refusal.value.unheard
    await kms.close()


async def test_a_mount_that_is_not_there_is_said_so(bao: Bao) -> None:
    kms = TransitKms(bao.url, "nowhere", bao.token_file, ca_file=bao.ca_file)
    # To a token that may not see it, it is denied.
    with pytest.raises(KmsAccessDenied):
        await kms.new_key(_ACCOUNT, 1)
    await kms.close()


async def test_a_customers_key_is_used_and_left_to_its_owner(bao: Bao) -> None:
    kms = bao.kms()
    name = f"customer-{_ACCOUNT}"
    bao.ask("POST", f"transit/keys/{name}", derived=True)
    key = await kms.adopt_key(_ACCOUNT, 2, KeyReference(f"transit/{name}"))
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET
    await kms.destroy_key(key)
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET
    # Its owner turns the old versions off.
    bao.ask("POST", f"transit/keys/{name}/rotate")
    bao.ask("POST", f"transit/keys/{name}/config", min_decryption_version=2)
    with pytest.raises(KmsKeyDisabled):
        await kms.unwrap(key, _WRAPPING, wrapped)
    await kms.close()


async def test_a_customers_key_that_cannot_serve_is_refused_with_the_reason(bao: Bao) -> None:
    """D1: another account's, one that is not derived, one that can be taken out, one that is not there."""
    kms = bao.kms()
    account = ids.new_id()
    for prefix, values in (
        ("plain", {}),
        ("out", {"derived": True, "exportable": True}),
        ("rsa", {"type": "rsa-2048"}),
    ):
        bao.ask("POST", f"transit/keys/{prefix}-{account}", **values)
        with pytest.raises(KmsKeyInvalid):
            await kms.adopt_key(account, 1, KeyReference(f"transit/{prefix}-{account}"))
    bao.ask("POST", f"transit/keys/mine-{account}", derived=True)
    with pytest.raises(KmsKeyInvalid, match="does not end with"):
        await kms.adopt_key(ids.new_id(), 1, KeyReference(f"transit/mine-{account}"))
    with pytest.raises(KmsKeyInvalid):
        await kms.adopt_key(account, 1, KeyReference(f"transit/none-{account}"))
    for wrong in ("", "transit", "../sys/mounts/" + account, "transit/a?b" + account, "/x" + account):
        with pytest.raises(InvalidArgument):
            await kms.adopt_key(account, 1, KeyReference(wrong))
    await kms.close()


@pytest.mark.parametrize(
    ("status", "errors", "expected"),
    [
        (503, "Vault is sealed", KmsUnavailable),
        (500, "internal error", KmsUnavailable),
        (429, "quota", KmsThrottled),
        (403, "permission denied", KmsAccessDenied),
        (404, "no handler for route", KmsKeyInvalid),
        (400, "encryption key not found", KmsKeyInvalid),
        (400, "key is soft-deleted", KmsKeyDisabled),
        (400, "cipher: message authentication failed", OpenFailed),
        (400, "invalid ciphertext: no prefix", OpenFailed),
    ],
)
def test_each_refusal_has_its_name(status: int, errors: str, expected: type[Exception]) -> None:
    assert type(transit._fault(status, errors, "3")) is expected
