"""Upgrades: every replica is restarted while calls go on, and the services' authority changes meanwhile.

    python -m tests.faults.rolling [--rounds 20]

In a round one replica of each service that has several is restarted, of all services at once. Between
rounds the authority moves on a step: both are trusted, certificates are of the new one, the new one
alone is trusted. Prints a table and ends with a code; the last row is the twin, in which gateways are killed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sealcomb_client import Client
from services.common.methods import GATEWAY, INGEST, KEYVAULT, SERVICES, VECTORSTORE
from services.standalone.pki import Authority, make_authority, service_names, write_file
from tests.faults.calls import Outcome, calling
from tests.faults.fleet import Fleet, fleet

COUNTS = {KEYVAULT: 2, VECTORSTORE: 2, INGEST: 2, GATEWAY: 2}
# A service takes new files as a client within 5 s.
_TAKEN_S = 8.0
_KILLS_MAX = 5


@dataclass
class Report:
    """What was done, and what became of the calls."""

    restarts: Counter[str] = field(default_factory=Counter)
    authorities: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    kills: int = 0
    failed_by_kills: int = 0

    def table(self) -> str:
        """For people."""
        calls = ", ".join(f"{kind} {count}" for kind, count in sorted(self.outcome.good.items()))
        failed = str(len(self.outcome.failures))
        rows = [("what", "how often", "bound", "failed calls")]
        rows += [(f"{name} restarted", str(count), "", "") for name, count in sorted(self.restarts.items())]
        rows.append(("authority changed", str(self.authorities), "", ""))
        rows.append((f"all calls ({calls})", str(self.outcome.good.total()), "0", failed))
        rows.append(("twin: a gateway killed", str(self.kills), "> 0", str(self.failed_by_kills)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        return "\n".join(" | ".join(line).rstrip() for line in lines)


class Changing:
    """The services' authority on its way to a new one."""

    def __init__(self, installation: Fleet) -> None:
        self._keys = installation.keys
        self._steps = 0
        self._new: Authority | None = None
        self._trusted = self._keys.ca_file.read_bytes()
        self.changed = 0

    def step(self) -> None:
        """The next of three steps."""
        now = dt.datetime.now(dt.UTC)
        if self._new is None:
            self._new = make_authority(f"authority {self.changed + 2}", now)
            self._trust(self._trusted + self._new.pem)
        elif self._steps % 3 == 1:
            for service in SERVICES:
                certificate, key = self._new.issue(service_names(service), now)
                folder = self._keys.tls_dir(service)
                write_file(folder / "key.pem", key)
                write_file(folder / "cert.pem", certificate)
        else:
            self._trusted = self._new.pem
            self._trust(self._trusted)
            self._new = None
            self.changed += 1
        self._steps += 1

    def _trust(self, authorities: bytes) -> None:
        for service in SERVICES:
            write_file(self._keys.tls_dir(service) / "ca.pem", authorities)


def upgraded(installation: Fleet, rounds: int, token: str) -> Report:
    """So many rounds under load; a change of the authority takes two of them and ends after the last."""
    report = Report()
    changing = Changing(installation)
    with calling(installation.channel, token) as outcome:
        for number in range(rounds):
            changing.step()
            _restart_one_of_each(installation, number, report)
        for _ in range(-rounds % 3):
            changing.step()
            time.sleep(_TAKEN_S)
    report.authorities = changing.changed
    report.outcome = outcome
    return report


def _restart_one_of_each(installation: Fleet, number: int, report: Report) -> None:
    begun_s = time.monotonic()
    several = {name: replicas for name, replicas in installation.replicas.items() if len(replicas) > 1}
    with ThreadPoolExecutor(len(several)) as pool:
        list(pool.map(installation.restart, (all_of[number % len(all_of)] for all_of in several.values())))
    report.restarts.update(several.keys())
    # The next step of the authority waits until everybody has taken this one.
    time.sleep(max(0.0, _TAKEN_S - (time.monotonic() - begun_s)))


def killed(installation: Fleet, token: str, report: Report) -> None:
    """The twin: gateways that are killed fail calls, and the callers see it."""
    with calling(installation.channel, token, prepare=False) as outcome:
        while not outcome.failures and report.kills < _KILLS_MAX:
            replica = installation.replicas[GATEWAY][report.kills % 2]
            time.sleep(1)
            installation.leave(replica)
            replica.stop(signal.SIGKILL)
            report.kills += 1
            replica.start()
            installation.wait_serving(replica)
    report.failed_by_kills = len(outcome.failures)


def main() -> int:
    """The table; 1 if a call failed, a kind was never answered, or the twin failed none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, fleet(Path(folder), COUNTS) as installation:
        with Client(installation.connection()) as client:
            token = client.accounts.create("bees").token
        report = upgraded(installation, rounds, token)
        killed(installation, token, report)
    print(report.table())
    for failure in report.outcome.failures[:20]:
        print(failure)
    good = not report.outcome.failures and all(report.outcome.good.values())
    return int(not good or not report.failed_by_kills)


if __name__ == "__main__":
    sys.exit(main())
