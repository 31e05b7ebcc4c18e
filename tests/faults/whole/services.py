"""Faults of an installation's own processes, of the network between them, and of its disk."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sealcomb_client import ApiError
from services.standalone.config import PORTS_FILE
from tests.faults.load import VICTIMS, harm, points_of, victim_pid, writing
from tests.faults.whole.row import Row
from tests.system.installation import SERVICES, Account, Installation, running

_APART_S = 1.0
_STOPPED_S = 3.0
_CUT_S = 5.0
# Shorter than the cut: a call that needs a service which nobody reaches has to fail within it.
_CUT_CALL_S = 3.0
_FULL_S = 3.0
_DISK = "192m"
_CALL_S = 5.0
_PROBE = "probe"


def of_services(folder: Path, rounds: int) -> Iterator[Row]:
    """Kills, stops, and services that nobody reaches."""
    with running(folder) as installation:
        strikes: list[tuple[str, Sequence[str], Callable[[Installation, str, Account, Row], None]]] = [
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
        yield _load(installation, "disk full for 3 s", "all data", rounds, partial(_fill, installation))


def _load(
    installation: Installation, fault: str, where: str, rounds: int, strike: Callable[[Account, Row], None]
) -> Row:
    """A fault again and again under load, on an account of its own."""
    row, account = Row(fault, where), installation.new_account()
    with writing(account) as written:
        written.batches_tried.append(_PROBE)
        time.sleep(_APART_S)
        for _ in range(rounds):
            strike(account, row)
            row.recovers(lambda: _works(account))
            row.times += 1
            time.sleep(_APART_S)
    installation.wait_serving()
    row.lost, wrong = harm(account, written)
    row.wrong += wrong
    row.acknowledged = len(written.documents) + len(written.batches_done)
    row.refused += len(written.failures)
    return row


def _works(account: Account) -> bool:
    """Whether points and text are taken and found."""
    try:
        account.client.points.upsert("vectors", points_of(_PROBE), timeout_s=_CALL_S)
        account.client.search("texts", "seal", timeout_s=_CALL_S)
    except ApiError:
        return False
    return True


def _kill(installation: Installation, victim: str, _account: Account, _row: Row) -> None:
    os.kill(_pid(installation, victim), signal.SIGKILL)


def _stop(installation: Installation, victim: str, _account: Account, _row: Row) -> None:
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


def _cut(installation: Installation, service: str, account: Account, row: Row) -> None:
    """Drops packets to a service's inner port, whoever sends them; this runs in a network of its own.

    Writers wait longer than that and lose nothing by it, so that a cut that is none would look the same. A
    call that needs the service shows it, and how many packets were dropped.
    """
    port = json.loads((installation.data / PORTS_FILE).read_text())[service]
    chain = f"type filter hook output priority 0\ntcp dport {port} counter drop"
    rules = f"table inet cut {{\nchain out {{\n{chain}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    end = time.monotonic() + _CUT_S
    try:
        if _needs(service, account):
            row.wrong.append(f"an answer of {service}, which is cut off")
        else:
            row.refused += 1
        time.sleep(max(0.0, end - time.monotonic()))
        listed = subprocess.run(
            ["nft", "list", "table", "inet", "cut"], text=True, check=True, capture_output=True
        )
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "cut"], check=True)
    if not int(listed.stdout.partition("counter packets ")[2].partition(" ")[0]):
        row.wrong.append("no packet was dropped")


def _needs(service: str, account: Account) -> bool:
    """Whether a call is answered that cannot be without the service."""
    client = account.client
    calls: dict[str, Callable[[], object]] = {
        "gateway": lambda: client.tokens.whoami(timeout_s=_CUT_CALL_S),
        # A new data key, which nobody has yet.
        "keyvault": lambda: client.collections.create(
            f"cut {secrets.token_hex(6)}", dimension=4, timeout_s=_CUT_CALL_S
        ),
        "vectorstore": lambda: client.points.count("vectors", timeout_s=_CUT_CALL_S),
        "ingest": lambda: client.search("texts", "seal", timeout_s=_CUT_CALL_S),
    }
    try:
        calls[service]()
    except ApiError:
        return False
    return True


def _fill(installation: Installation, _account: Account, row: Row) -> None:
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
                row.wrong.append("an answer while the disk was full")
            time.sleep(0.1)
    except ApiError as error:
        row.wrong.append(f"reads stop while the disk is full: {error}")
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
