"""PKCS#11 on a real SoftHSM: keys stay in the token, and a wrong PIN is tried once (D8, D9, D14)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType
from pkcs11 import exceptions as errors

from services.common import ids
from services.common.sealing import OpenFailed
from services.keyvault.kms.binding import handle_of
from services.keyvault.kms.faults import KmsAccessDenied, KmsKeyInvalid, KmsUnavailable
from services.keyvault.kms.pkcs11 import Pkcs11Kms
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.records import Wrapping
from tests.keyvault.kms.peers import SOFTHSM, Token

_ACCOUNT = ids.from_bytes(b"account of tests")
_SECRET = bytes(range(32))
_WRAPPING = Wrapping(_ACCOUNT, ids.from_bytes(b"resource of test"), "collection", ids.from_bytes(bytes(16)))


@pytest.fixture
def kms(token: Token) -> Iterator[Pkcs11Kms]:
    """The provider, closed whatever happens."""
    made = token.kms()
    yield made
    made._thread.submit(made._drop_session).result()
    made._thread.shutdown()


def _in_token(kms: Pkcs11Kms, work: Any) -> Any:
    """What some work with the open session gives."""
    return kms._thread.submit(lambda: work(kms._opened())).result()


async def test_a_key_never_leaves_the_token(kms: Pkcs11Kms) -> None:
    key = await kms.new_key(_ACCOUNT, 1)

    def look(session: Any) -> tuple[Any, ...]:
        found = session.get_key(label=handle_of(key).key)
        with pytest.raises(errors.AttributeSensitive):
            found[Attribute.VALUE]
        return found[Attribute.SENSITIVE], found[Attribute.EXTRACTABLE], found[Attribute.VALUE_LEN]

    assert _in_token(kms, look) == (True, False, 32)


async def test_a_destroyed_key_is_gone_from_the_token(kms: Pkcs11Kms) -> None:
    """D14: also one that somebody else destroys there."""
    key, other = await kms.new_key(_ACCOUNT, 1), await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    await kms.wrap(other, _WRAPPING, _SECRET)
    await kms.destroy_key(key)
    _in_token(kms, lambda session: session.get_key(label=handle_of(other).key).destroy())
    for gone in (key, other):
        with pytest.raises(KmsKeyInvalid):
            await kms.unwrap(gone, _WRAPPING, wrapped)


async def test_a_handle_to_a_key_of_another_account_is_refused(kms: Pkcs11Kms) -> None:
    """D8."""
    key, foreign = await kms.new_key(_ACCOUNT, 1), await kms.new_key(ids.new_id(), 1)
    moved = replace(key, handle=replace(handle_of(key), key=handle_of(foreign).key).encode())
    with pytest.raises(OpenFailed):
        await kms.wrap(moved, _WRAPPING, _SECRET)


async def test_a_lost_session_is_opened_again(kms: Pkcs11Kms) -> None:
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    _in_token(kms, lambda session: session.close())
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET


async def test_a_token_that_fails_is_not_a_wrapping_that_does_not_open(
    kms: Pkcs11Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SoftHSM says of a wrong tag what others say of a broken device."""
    key = await kms.new_key(_ACCOUNT, 1)
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)

    def broken(*_arguments: Any) -> Any:
        raise errors.GeneralError

    monkeypatch.setattr(kms, "_with_key", broken)
    with pytest.raises(KmsUnavailable):
        await kms.unwrap(key, _WRAPPING, wrapped)
    monkeypatch.undo()
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET


async def test_a_wrong_pin_is_tried_once(
    token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few wrong ones would lock the token for good; a corrected file is read."""
    pin_file = tmp_path / "pin"
    pin_file.write_text("wrong\n")
    kms = Pkcs11Kms(SOFTHSM, token.label, pin_file)
    tried: list[str] = []
    library = pkcs11.lib(str(SOFTHSM))

    def load(path: str) -> Any:
        tried.append(path)
        return library

    monkeypatch.setattr(pkcs11, "lib", load)
    for _ in range(5):
        with pytest.raises(KmsAccessDenied, match="PIN"):
            await kms.new_key(_ACCOUNT, 1)
    assert len(tried) == 1
    pin_file.write_text(token.pin_file.read_text())
    await kms.new_key(_ACCOUNT, 1)
    pin_file.unlink()
    kms._thread.submit(kms._drop_session).result()
    with pytest.raises(KmsAccessDenied, match="cannot read"):
        await kms.new_key(_ACCOUNT, 1)
    kms._thread.shutdown()


async def test_a_token_or_module_that_is_not_there_is_unavailable(token: Token, tmp_path: Path) -> None:
    for module, label in ((SOFTHSM, "none"), (tmp_path / "none.so", token.label)):
        kms = Pkcs11Kms(module, label, token.pin_file)
        with pytest.raises(KmsUnavailable):
            await kms.new_key(_ACCOUNT, 1)
        await kms.close()


async def test_a_customers_key_is_used_and_left_in_the_token(kms: Pkcs11Kms) -> None:
    label = f"customer-{secrets.token_hex(4)}-{_ACCOUNT}"
    generate(kms, label)
    key = await kms.adopt_key(_ACCOUNT, 1, KeyReference(label))
    wrapped = await kms.wrap(key, _WRAPPING, _SECRET)
    await kms.destroy_key(key)
    assert await kms.unwrap(key, _WRAPPING, wrapped) == _SECRET


async def test_a_customers_key_that_cannot_serve_is_refused_with_the_reason(kms: Pkcs11Kms) -> None:
    """D1: another account's, one of ours, short, extractable, or not there."""
    own = await kms.new_key(_ACCOUNT, 1)
    wrong = [handle_of(own).key, f"none-{_ACCOUNT}"]
    for size, values in ((128, {}), (256, {Attribute.EXTRACTABLE: True}), (256, {Attribute.DECRYPT: False})):
        wrong.append(f"{secrets.token_hex(4)}-{_ACCOUNT}")
        generate(kms, wrong[-1], size, values)
    twice = f"twice-{secrets.token_hex(4)}-{_ACCOUNT}"
    for _ in range(2):
        generate(kms, twice)
    for label in [*wrong, twice, "customer-" + ids.new_id()]:
        with pytest.raises(KmsKeyInvalid):
            await kms.adopt_key(_ACCOUNT, 1, KeyReference(label))


def generate(kms: Pkcs11Kms, label: str, size: int = 256, values: dict[Any, Any] | None = None) -> None:
    template = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.DECRYPT: True,
        **(values or {}),
    }
    _in_token(
        kms,
        lambda session: session.generate_key(KeyType.AES, size, label=label, store=True, template=template),
    )
