"""Faults of an installation's own processes, of the network between them, and of its disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sealcomb_client import ApiError
from tests.faults.load import VICTIMS, harm, points_of, victim_pid, writing
from tests.faults.whole.row import Row
from tests.system.installation import SERVICES, Account, Installation, running

_APART_S = 1.0
_STOPPED_S = 3.0
_CUT_S = 5.0
_FULL_S = 3.0
_DISK = "192m"
_CALL_S = 5.0
_PROBE = "probe"


def of_services(folder: Path, rounds: int) -> Iterator[Row]:
    """Kills, stops, and services that nobody reaches."""
    with running(folder) as installation:
        strikes: list[tuple[str, Sequence[str], Callable[[Installation, str], None]]] = [
            ("kill -9", VICTIMS, _kill),
            ("stopped for 3 s", VICTIMS, _stop),
            ("cut off for 5 s", SERVICES, _cut),
        ]
        for fault, victims, strike in strikes:
            for victim in victims:
                yield _load(installation, fault, victim, rounds, partial(strike, installation, victim))


def of_disk(folder: Path, rounds: int) -> Iterator[Row]:
    """A disk that is full for a while."""
    with _small_disk(folder / "data"), running(folder) as installation:
        account_reads: list[str] = []
        row = _load(
            installation, "disk full for 3 s", "all data", rounds, lambda: _fill(installation, account_reads)
        )
        row.wrong += account_reads
        yield row


def _load(installation: Installation, fault: str, where: str, rounds: int, strike: Callable[[], None]) -> Row:
    """A fault again and again under load, on an account of its own."""
    row, account = Row(fault, where), installation.new_account()
    with writing(account) as written:
        written.batches_tried.append(_PROBE)
        time.sleep(_APART_S)
        for _ in range(rounds):
            strike()
            row.recovers(lambda: _works(account))
            row.times += 1
            time.sleep(_APART_S)
    installation.wait_serving()
    row.lost, wrong = harm(account, written)
    row.wrong += wrong
    row.acknowledged = len(written.documents) + len(written.batches_done)
    row.refused = len(written.failures)
    return row


def _works(account: Account) -> bool:
    """Whether points and text are taken and found."""
    try:
        account.client.points.upsert("vectors", points_of(_PROBE), timeout_s=_CALL_S)
        account.client.search("texts", "seal", timeout_s=_CALL_S)
    except ApiError:
        return False
    return True


def _kill(installation: Installation, victim: str) -> None:
    os.kill(_pid(installation, victim), signal.SIGKILL)


def _stop(installation: Installation, victim: str) -> None:
    pid = _pid(installation, victim)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(_STOPPED_S)
    finally:
        os.kill(pid, signal.SIGCONT)


def _pid(installation: Installation, victim: str) -> int:
    end = time.monotonic() + 60
    while not (pid := victim_pid(installation, victim)):
        assert time.monotonic() < end, f"there is no {victim}"
        time.sleep(0.05)
    return pid


def _cut(installation: Installation, service: str) -> None:
    """Drops packets to a service's inner port, whoever sends them; this runs in a network of its own."""
    port = json.loads((installation.data / "ports.json").read_text())[service]
    chain = f"type filter hook output priority 0; tcp dport {port} drop;"
    chain = f"type filter hook output priority 0\ntcp dport {port} drop"
    rules = f"table inet cut {{\nchain out {{\n{chain}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        time.sleep(_CUT_S)
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "cut"], check=True)


def _fill(installation: Installation, wrong: list[str]) -> None:
    """Takes all room, looks whether reads go on, and gives it back."""
    ballast = installation.data / "ballast"
    probe = installation.new_account()
    probe.client.collections.create("reads", dimension=16)
    wanted = points_of("reads")
    probe.client.points.upsert("reads", wanted)
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    try:
        end = time.monotonic() + _FULL_S
        while time.monotonic() < end:
            found = probe.client.points.query("reads", wanted[0].vector_f32, top_k=1, timeout_s=_CALL_S)
            if found[0].id != wanted[0].id:
                wrong.append("an answer while the disk was full")
            time.sleep(0.1)
    except ApiError as error:
        wrong.append(f"reads stop while the disk is full: {error}")
    finally:
        ballast.unlink()


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=0700", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
