"""`make attack-keys`: every attack on keys in full, with and without its control, as one table."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

import structlog

from tests.attacks.keys import peers, sealed, vault
from tests.attacks.keys.proved import prove
from tests.attacks.keys.row import Attack, Trial

ATTACKS = sorted(
    [*peers.ATTACKS, *vault.ATTACKS, *sealed.ATTACKS],
    key=lambda attack: (attack.row[0], int(attack.row[1:])),
)
# Rows whose attack is a whole test; those of edge and inner certificates' renewal are theirs.
BY_TESTS = [
    *("C3", "C8", "C9", "C11", "D6", "D11", "D12", "D13", "D16", "D20", "D24", "D25", "F16", "F17", "F18"),
]


def _run(attack: Attack, *, twin: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="sealcomb-attack-") as folder:
        return asyncio.run(attack.run(Trial(Path(folder), attack.size, twin)))


def main() -> int:
    """Prints the table; 1 where a figure is beyond its bound or a twin within."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(f"{'row':4} {'attack':52} {'tries':>6} {'figure':>7} {'bound':>6} {'twin':>7}")
    bad = 0
    for attack in ATTACKS:
        figure, twin = _run(attack, twin=False), _run(attack, twin=True)
        holds = figure <= attack.bound < twin
        bad += not holds
        print(
            f"{attack.row:4} {attack.what:52} {attack.size:6} {figure:7.0f} {attack.bound:6.0f} {twin:7.0f}"
            f"{'' if holds else '   BROKEN'}",
            flush=True,
        )
    print("\nrows that whole tests prove: tests, failures, and how many of them are twins")
    for proof in prove(BY_TESTS):
        holds = not proof.failed and proof.tests > 0
        bad += not holds
        figures = f"{proof.tests:6} {proof.failed:7} {0:6} {proof.twins:7}"
        print(f"{proof.row:4} {'':52} {figures}{'' if holds else '   BROKEN'}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
