"""The off switch of a whole installation under load: from DisableKey to the first refused call, 200 times."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.keys.table import Row, bounded, p99, times
from sealcomb_client import ApiError, Client
from sealcomb_client.content import point
from tests.system.installation import Account, Installation, running

_TRIALS = 200
_OTHERS = 3
_GIVE_UP_S = 30.0
_BOUND_S = 1.0


def rows() -> list[Row]:
    """Switching off and on again, seen at vectorstore and at ingest, while other accounts work."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as installation:
        stop = threading.Event()
        loads = [threading.Thread(target=_load, args=(_busy(installation), stop)) for _ in range(_OTHERS)]
        for load in loads:
            load.start()
        try:
            found = _trials(_busy(installation))
            if not all(load.is_alive() for load in loads):
                raise RuntimeError("the load ended before the trials")
            return found
        finally:
            stop.set()
            for load in loads:
                load.join()


def _trials(account: Account) -> list[Row]:
    calls: dict[str, Callable[[Client], object]] = {
        "vectorstore": lambda client: client.points.query("vectors", [1, 0], timeout_s=5),
        "ingest": lambda client: client.search("texts", "what happens to drones?", timeout_s=5),
    }
    off: dict[str, list[float]] = {name: [] for name in calls}
    on: dict[str, list[float]] = {name: [] for name in calls}
    with Client(account.connection) as vectors, Client(account.connection) as texts:
        clients = {"vectorstore": vectors, "ingest": texts}
        for _ in range(_TRIALS):
            for name, seconds in _switch(account.client.keys.disable, calls, clients, refused=True).items():
                off[name].append(seconds)
            for name, seconds in _switch(account.client.keys.enable, calls, clients, refused=False).items():
                on[name].append(seconds)
    found = [
        bounded(
            times(f"off switch under load: first refusal at {name}", off[name]),
            p99(off[name]),
            _BOUND_S,
            "s at p99",
        )
        for name in calls
    ]
    worst = max(max(seconds) for seconds in off.values())
    found.append(Row("... the slowest of all", _TRIALS * len(calls), f"{worst * 1e3:.0f} ms"))
    return [*found, *(times(f"... on again at {name}", on[name]) for name in calls)]


def _switch(
    act: Callable[[], object],
    calls: dict[str, Callable[[Client], object]],
    clients: dict[str, Client],
    *,
    refused: bool,
) -> dict[str, float]:
    """Seconds from the beginning of the act until each service answers so."""
    found: dict[str, float] = {}
    started = time.perf_counter()

    def probe(name: str) -> None:
        while time.perf_counter() - started < _GIVE_UP_S:
            if _is_refused(calls[name], clients[name]) is refused:
                found[name] = time.perf_counter() - started
                return

    probes = [threading.Thread(target=probe, args=(name,)) for name in calls]
    for thread in probes:
        thread.start()
    act()
    for thread in probes:
        thread.join()
    return {name: found.get(name, _GIVE_UP_S) for name in calls}


def _is_refused(call: Callable[[Client], object], client: Client) -> bool:
    try:
        call(client)
    except ApiError as error:
        return error.reason == "KEY_DISABLED"
    return False


def _busy(installation: Installation) -> Account:
    account = installation.new_account()
    account.client.collections.create("texts", embedder="default")
    account.client.documents.upload("texts", b"The drones are driven out in August.", name="drones.txt")
    account.client.collections.create("vectors", dimension=2)
    account.client.points.upsert("vectors", [point(str(n), [1, n]) for n in range(100)])
    return account


def _load(account: Account, stop: threading.Event) -> None:
    with Client(account.connection) as client:
        while not stop.is_set():
            client.points.query("vectors", [1, 0])
            client.search("texts", "drones")


if __name__ == "__main__":
    from benchmarks.keys.table import show

    show(rows())
