"""An account on a key of its own in a real OpenBao: its owner turns the data off there (D12, D14, D20)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from sealcomb.v1.key_service_pb2 import InstallationKey, TransitKey
from sealcomb_client import ApiError
from sealcomb_client.content import point
from tests.keyvault.kms.peers import Bao
from tests.system.installation import Account, Installation, running

_TTL_S = 2.0
_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """An OpenBao server."""
    server = Bao(tmp_path_factory.mktemp("bao"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def installation(bao: Bao, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Accounts begin with keys in a file; OpenBao is there for those who bring their own."""
    environ = {
        "SEALCOMB_TRANSIT_URL": bao.url,
        "SEALCOMB_TRANSIT_TOKEN_FILE": str(bao.token_file),
        "SEALCOMB_TRANSIT_CA_FILE": str(bao.ca_file),
        "SEALCOMB_DATA_KEY_TTL_S": str(_TTL_S),
        "SEALCOMB_KMS_TIMEOUT_S": "2",
    }
    with running(tmp_path_factory.mktemp("installation"), environ=environ) as installation:
        yield installation


def _filled(installation: Installation) -> Account:
    account = installation.new_account()
    account.client.collections.create("texts", embedder="default")
    account.client.documents.upload("texts", b"The drones are driven out in August.", name="drones.txt")
    account.client.collections.create("vectors", dimension=2)
    account.client.points.upsert("vectors", [point("a", [1, 0])])
    return account


@pytest.fixture
def moved(installation: Installation, bao: Bao) -> Account:
    """An account whose key is a transit key of its own."""
    account = _filled(installation)
    name = f"mine-{account.id}"
    bao.ask("POST", f"transit/keys/{name}", derived=True)
    key = account.client.keys.bind(TransitKey(mount="transit", name=name))
    assert (key.provider, key.adopted_key) == ("transit", f"transit/{name}")
    assert _refusals(account) == ("", "")
    return account


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ApiError as error:
        return error.reason
    return ""


def _refusals(account: Account) -> tuple[str, str]:
    """Why vectorstore and ingest refuse now; empty where they work."""
    client = account.client
    return (
        _refusal(lambda: client.points.query("vectors", [1, 0], timeout_s=5)),
        _refusal(lambda: client.search("texts", "what happens to drones?", timeout_s=5)),
    )


def _until(account: Account, expected: tuple[str, str]) -> float:
    """How long until both answer so."""
    started = time.monotonic()
    while (seen := _refusals(account)) != expected:
        assert time.monotonic() < started + _WITHIN_S, seen
        time.sleep(0.05)
    return time.monotonic() - started


def test_the_owner_turns_the_data_off_and_on_in_a_kms_of_its_own(
    installation: Installation, bao: Bao, moved: Account
) -> None:
    """D14: within the time that services hold keys; no other account notices."""
    other = _filled(installation)
    name = f"mine-{moved.id}"
    bao.ask("POST", f"transit/keys/{name}/rotate")
    bao.ask("POST", f"transit/keys/{name}/config", min_decryption_version=2)
    _until(moved, ("KEY_DISABLED", "KEY_DISABLED"))
    assert _refusals(other) == ("", "")
    # With the key off it cannot be taken back either.
    with pytest.raises(ApiError) as refused:
        moved.client.keys.bind(InstallationKey())
    assert refused.value.reason == "KEY_DISABLED"
    bao.ask("POST", f"transit/keys/{name}/config", min_decryption_version=1)
    _until(moved, ("", ""))
    back = moved.client.keys.bind(InstallationKey())
    assert (back.provider, back.adopted_key) == ("file", "")
    assert _refusals(moved) == ("", "")


def test_a_kms_that_stands_still_is_not_off_and_its_return_is_noticed(
    installation: Installation, bao: Bao, moved: Account
) -> None:
    """D12: UNAVAILABLE once what is held is too old, never "disabled"; accounts elsewhere go on."""
    other = _filled(installation)
    assert _refusals(moved) == ("", "")
    os.kill(bao.pid, signal.SIGSTOP)
    try:
        _until(moved, ("KMS_UNAVAILABLE", "KMS_UNAVAILABLE"))
        assert _refusals(other) == ("", "")
        assert moved.client.keys.get().adopted_key
    finally:
        os.kill(bao.pid, signal.SIGCONT)
    _until(moved, ("", ""))


def test_another_accounts_key_is_refused(installation: Installation, moved: Account) -> None:
    """D1: its name says whose it is, and the old key stays in force."""
    other = _filled(installation)
    with pytest.raises(ApiError) as refused:
        other.client.keys.bind(TransitKey(mount="transit", name=f"mine-{moved.id}"))
    assert refused.value.reason == "KMS_KEY_INVALID"
    assert _refusals(other) == ("", "")
