"""The off switch where no word of it arrives: services stop with the data keys that they hold (D14).

Vectorstore and ingest are whole processes whose connections to keyvault go through a proxy. Once it is
frozen they are told nothing and get nothing, although the connections stay.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sealcomb_client import ApiError
from sealcomb_client.content import point
from tests.system.installation import Account, running

_CALL_S = 5
_GIVE_UP_S = 60.0
_LAUNCHER = """
import threading, time
from pathlib import Path
from services.standalone import main
from services.standalone.config import Layout
from tests.tcp_proxy import TcpProxy

proxies = []

def through_a_proxy(own):
    def settings(layout):
        proxy = TcpProxy(layout.ports["keyvault"])
        proxy.start()
        proxies.append(proxy)
        return own(layout) | {"KEYVAULT_ADDRESS": f"127.0.0.1:{proxy.port}"}
    return settings

def freeze_when_told():
    while not Path("freeze").exists():
        time.sleep(0.02)
    for proxy in proxies:
        proxy.freeze()
    Path("frozen").touch()

Layout._vectorstore = through_a_proxy(Layout._vectorstore)
Layout._ingest = through_a_proxy(Layout._ingest)
threading.Thread(target=freeze_when_told, daemon=True).start()
main.main()
"""


def _calls(account: Account) -> dict[str, Callable[[], object]]:
    """A call that needs a data key of each service."""
    client = account.client
    client.collections.create("vectors", dimension=2)
    client.points.upsert("vectors", [point("a", [1, 0])])
    client.collections.create("texts", embedder="default")
    document = client.documents.upload("texts", b"Drones leave in August.", name="drones.txt").id
    return {
        "vectorstore": lambda: client.points.query("vectors", [1, 0], timeout_s=_CALL_S),
        "ingest": lambda: client.documents.download("texts", document, io.BytesIO(), timeout_s=_CALL_S),
    }


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except ApiError:
        return False
    return True


def _freeze(folder: Path) -> None:
    (folder / "freeze").touch()
    end = time.monotonic() + _GIVE_UP_S
    while not (folder / "frozen").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("ttl_s", "is_bounded"), [(4.0, True), (120.0, False)])
def test_services_that_are_told_nothing_stop_when_their_keys_are_too_old(
    tmp_path: Path, ttl_s: float, is_bounded: bool
) -> None:
    """D14: no call that begins later than the TTL is answered; with a long TTL, the twin, all are."""
    environ = {"SEALCOMB_DATA_KEY_TTL_S": str(ttl_s)}
    with running(tmp_path, environ=environ, launcher=_LAUNCHER) as installation:
        account = installation.new_account()
        calls = _calls(account)
        assert all(_works(call) for call in calls.values())
        _freeze(tmp_path)
        frozen_s = time.monotonic()
        account.client.keys.disable()
        answered_s = dict.fromkeys(calls, 0.0)
        refused = set[str]()
        while time.monotonic() < frozen_s + 8.0 or (is_bounded and refused != calls.keys()):
            assert time.monotonic() < frozen_s + _GIVE_UP_S
            for service, call in calls.items():
                began_s = time.monotonic()
                if _works(call):
                    answered_s[service] = began_s - frozen_s
                    assert service not in refused
                else:
                    refused.add(service)
        if is_bounded:
            assert max(answered_s.values()) <= ttl_s
        else:
            # The push was lost indeed: nothing but the age of keys stops anything.
            assert not refused
            assert min(answered_s.values()) > 4.0
