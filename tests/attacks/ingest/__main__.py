"""`make attack-ingest`: every row of ingest's threats as one table (attack, figure, bound, twin's figure).

Ends by itself, with 1 when a figure is past its bound or a twin stays green. SEALCOMB_TEST_ROUNDS makes it
longer or shorter (100 is the whole of it).
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.ingest import honeypot, leaks, lost_tokens, memory, proved, refreshes
from tests.attacks.ingest.rig import attacked
from tests.ingest.oauth.providers import User, provider
from tests.ingest.sources.servers.https import make_tls


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    row: str
    attack: str
    figure: str
    bound: str
    twin: str
    held: bool


def measured(folder: Path, rounds: int) -> Iterator[Line]:
    """The rows that are measured."""
    used, left = asyncio.run(memory.copies(folder / "wiped", environ=memory.WIPED, wait_s=2.0))
    _, kept = asyncio.run(memory.copies(folder / "kept", environ=memory.WIPED, weakened="wipes nothing"))
    yield Line(
        "E1",
        "copies of a temporary token in memory after the end",
        f"{left} ({used} while it is used)",
        "0",
        f"{kept} where it is not wiped",
        left == 0 < kept,
    )
    yield _scan(folder)
    lost = asyncio.run(lost_tokens.kill_in_mid_fetch(folder / "lost", max(rounds // 2, 1)))
    again = asyncio.run(lost_tokens.kill_in_mid_fetch(folder / "again", 1, weakened="keeps tokens"))
    yield Line(
        "E2",
        f"{lost.killed} jobs killed in mid-fetch: tokens used again",
        f"{lost.used_again}; {lost.waiting} ask for a new one",
        "0; all",
        f"{again.used_again} of {again.killed} where tokens are kept",
        lost.used_again == 0 and lost.waiting == lost.killed and again.used_again > 0,
    )
    yield _refreshes(folder, rounds)
    yield from _honeypot(rounds)


def _refreshes(folder: Path, rounds: int) -> Line:
    ours = asyncio.run(refreshes.kill_while_refreshing(folder / "refreshes", rounds))
    twin = asyncio.run(
        refreshes.kill_while_refreshing(folder / "late", max(rounds // 5, 5), weakened="stores late")
    )
    return Line(
        "E10",
        f"{ours.kills} kills in {ours.refreshes} refreshes: families lost",
        f"{ours.lost_outside}; {ours.in_window} kills between answer and commit",
        "0 outside that window",
        f"{twin.revoked} of {twin.kills} where it is stored 0.3 s later",
        ours.lost_outside == 0 and twin.revoked > 0,
    )


def _honeypot(rounds: int) -> Iterator[Line]:
    ours = honeypot.run(rounds * 100, checked=True)
    twin = honeypot.run(rounds, checked=False)
    for row, attack, name in (
        ("E14-17", "inner addresses, direct and by redirect: connections at the honeypot", "corpus"),
        ("E15", "names that change between look-ups: connections at the honeypot", "rebinding"),
    ):
        mine, others = ours[name], twin[name]
        yield Line(
            row,
            attack,
            f"{mine['hits']} of {mine['tries']}",
            "0",
            f"{others['hits']} of {others['tries']} without the check",
            mine["hits"] == 0 < others["hits"],
        )


def _scan(folder: Path) -> Line:
    async def steps(weakened: str) -> tuple[int, int, int]:
        below = folder / f"scan {weakened}"
        (below / "server").mkdir(parents=True)
        (below / "process").mkdir()
        tls = make_tls(below / "server", ())
        with provider(below / "provider", tls.ca, ("api",)) as one:
            async with attacked(
                below / "process",
                tls,
                weakened=weakened,
                oauth=one.profile(),
                allow=one.netloc,
                oauth_clients_file=leaks.clients_file(below, one),
            ) as rig:
                scan = leaks.Scan(rig, User(tls.ca, below), one)
                scan.look_everywhere = bool(weakened)
                await leaks.live_through(scan)
                found = sum(len(one) for one in scan.steps.values())
                return found, len(scan.steps), len(scan.canaries.names())

    leaked, ends, secrets = asyncio.run(steps(""))
    twin, _, _ = asyncio.run(steps("keeps tokens"))
    return Line(
        "E1, E25",
        f"{secrets} secrets after {ends} kinds of end, DEBUG: found in files",
        str(leaked),
        "0",
        f"{twin} where tokens are kept",
        leaked == 0 < twin,
    )


def by_tests(rounds: int) -> Iterator[Line]:
    """The rows whose attacks are tests."""
    for row, outcome in zip(proved.PROVED, proved.outcomes(proved.PROVED, rounds), strict=True):
        for failure in outcome.failures:
            print(f"{row.row} FAILED: {failure}", file=sys.stderr)
        yield Line(
            row.row,
            row.attack,
            f"{outcome.passed} of {outcome.tests} refused",
            "all",
            f"{outcome.twins_red} of {outcome.twins} go through",
            outcome.passed == outcome.tests > 0 and outcome.twins_red == outcome.twins > 0,
        )


def show(lines: list[Line]) -> str:
    """The table."""
    heads = ("row", "attack", "figure", "bound", "twin's figure", "")
    cells = [heads] + [
        (one.row, one.attack, one.figure, one.bound, one.twin, "holds" if one.held else "FAILS")
        for one in sorted(lines, key=lambda line: int(line.row[1:].split("-")[0].split(",")[0]))
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def main() -> int:
    """Attacks, and prints the table."""
    rounds = int(os.environ.get("SEALCOMB_TEST_ROUNDS", "100"))
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for line in measured(Path(folder), rounds):
            lines.append(line)
            print(f"{line.row}: {line.attack}: {line.figure}", file=sys.stderr)
    lines += by_tests(rounds)
    print(show(lines))
    return 0 if all(line.held for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
