"""Rows of `make attack-edge` about thousands of connections, streams and header blocks (A6, A7, A10, A19)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from tests.attacks.edge_felt import Crew
from tests.attacks.edge_floods import Target
from tests.attacks.edge_masses import (
    Held,
    disorder,
    held,
    hold_connections,
    hold_uploads,
    open_files,
    stall,
)
from tests.attacks.edge_overload import memory_bytes
from tests.attacks.edge_slow import KINDS, SHORT_LIMIT_S, hurried, patient
from tests.attacks.edge_table import Row
from tests.attacks.frames import UPLOAD
from tests.gateway.load import Kind, load
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import Json, weakened

WORKERS = 4
_SLOW, _SLOW_TWIN = 5_000, 300
# Limits of minutes are shortened to this.
_SHORTENED_S = 10.0
_UPLOADS, _CONNECTIONS, _CONNECTIONS_TWIN = 10_000, 20_000, 11_200
_DISORDERLY = 100_000
_MEGABYTE = 1 << 20
_UNPACED = {"edge_connections_per_second": "100000"}


def slow(folder: Path, crew: Crew) -> Iterator[Row]:
    """A6, A19: thousands of connections of each kind, one kind after the other."""
    with running_edge(folder, **_UNPACED) as edge:
        ca_file, token = edge.installation.edge_ca_file, edge.create_account("mallory").token
        good = Kind(edge.create_account("a neighbour").token, callers=1, connections=1)
        with weakened(edge, patient) as twin:
            target = Target(twin.port, ca_file, token)
            patients = [
                crew.attackers.submit(stall, index, target, _SLOW_TWIN, 20.0) for index in range(len(KINDS))
            ]
            kept = [job.result() for job in patients]
        with weakened(edge, partial(hurried, seconds=_SHORTENED_S)) as shortened:
            for index, kind in enumerate(KINDS):
                short = kind.limit_s <= SHORT_LIMIT_S
                under, limit_s = (edge, kind.limit_s) if short else (shortened, _SHORTENED_S)
                target = Target(under.port, ca_file, token)
                jobs = [
                    crew.attackers.submit(stall, index, target, _SLOW // WORKERS, limit_s + 10)
                    for _ in range(WORKERS)
                ]
                failed, calls = _neighbour(crew, under, good, jobs)
                ends = [end for job in jobs for end in job.result()]
                known = sorted(end for end in ends if end is not None)
                figure = f"{len(known):,} of {len(ends):,} cut"
                if known:
                    figure += f" after {known[0]:.1f} to {known[-1]:.1f} s"
                figure += f"; neighbour {failed} of {calls:,} failed"
                ok = len(known) == len(ends) and known[-1] < limit_s + 5 and not failed
                bound = f"{limit_s:g} s{'' if short else f' (runs with {kind.limit_s:g})'}, 0 failed"
                stayed = kept[index].count(None)
                stay = f"{stayed} of {len(kept[index])} stay 20 s"
                ok = ok and stayed > len(kept[index]) / 2
                yield Row(kind.row, kind.name, figure, bound, stay, ok)


def uploads(folder: Path, crew: Crew) -> Iterator[Row]:
    """A19: uploads that send nothing, as many as one account can open."""
    figures = []
    for name, settings in (("own", {}), ("twin", {"calls_in_flight": "100000"})):
        (folder / name).mkdir()
        with running_edge(folder / name, **_UNPACED, **settings) as edge:
            target = Target(edge.port, edge.installation.edge_ca_file, edge.create_account("mallory").token)
            good = Kind(edge.create_account("a neighbour").token, UPLOAD, callers=1, connections=1)
            memory = memory_bytes(edge)

            def begin(_: int, until: Path, ready: Path, target: Target = target) -> Future[Held]:
                return crew.attackers.submit(hold_uploads, target, _UPLOADS // 2, until, ready)

            with held(begin, folder / name, 2) as found:
                grown = max(0, memory_bytes(edge) - memory)
                outcome = crew.neighbours_calls(edge, good, 4).result()
            figures.append((sum(one.taken for one in found), grown, outcome))
    (kept, grown, own), (twin_kept, _, other) = figures
    figure = f"{kept:,} held, the others refused, +{grown / _MEGABYTE:.0f} MB"
    figure += f"; neighbour's uploads {own.failed} of {own.failed + own.good:,} failed"
    twin = f"{twin_kept:,} held; neighbour {other.failed:,} of {other.failed + other.good:,} failed"
    ok = kept <= 256 and not own.failed and own.good > 0 and grown < 256 * _MEGABYTE
    yield Row(
        "A19",
        f"{_UPLOADS:,} uploads that send nothing",
        figure,
        "<= 256, 0 failed",
        twin,
        ok and other.failed > 0,
    )


def connections(folder: Path, crew: Crew) -> Iterator[Row]:
    """A7: more connections than the edge takes, and what each costs."""
    with running_edge(folder, **_UNPACED) as edge:
        good = Kind(edge.create_account("a neighbour").token, callers=1, connections=1)
        files, memory = open_files(edge), memory_bytes(edge)
        with load(edge, good) as neighbour:
            found, grown = _crowd(crew, edge, edge, folder, _CONNECTIONS, memory)
        back_s = _seconds_until(lambda: open_files(edge) <= files + 16)
        again = edge.health()
        with weakened(edge, _uncounted) as twin:
            other, _ = _crowd(crew, edge, twin, folder, _CONNECTIONS_TWIN, memory)
    taken, tried = sum(one.taken for one in found), sum(one.tried for one in found)
    figure = f"{taken:,} of {tried:,} taken, {grown / max(1, taken) / 1024:.0f} KiB each"
    figure += f"; neighbour {neighbour.failed} of {neighbour.failed + neighbour.good:,} failed"
    figure += f"; files as before after {back_s:.1f} s"
    ok = taken <= 10_000 and not neighbour.failed and back_s < 30 and again == "SERVING"
    more = sum(one.taken for one in other)
    twin_says = f"{more:,} of {sum(one.tried for one in other):,} taken"
    ok = ok and more > 10_000
    yield Row("A7", "idle connections", figure, "<= 10,000, 0 failed", twin_says, ok)


def poisoned(folder: Path, crew: Crew) -> Iterator[Row]:
    """A10: disorder in header tables, on both sides of one connection to the service."""
    with running_edge(folder) as edge:
        mallory = edge.create_account("mallory", calls_per_second=1e6, burst=1_000_000)
        bystander = edge.create_account("a bystander")
        target = Target(edge.port, edge.installation.edge_ca_file, mallory.token)
        jobs = [crew.attackers.submit(disorder, target, _DISORDERLY // 2) for _ in range(2)]
        good = Kind(bystander.token, callers=1, connections=1)
        failed = calls = foreign = own = 0
        while True:
            last = all(job.done() for job in jobs)
            outcome = crew.neighbours_calls(edge, good, 2).result()
            failed, calls = failed + outcome.failed, calls + outcome.failed + outcome.good
            seen, edge.backends.seen[:] = list(edge.backends.seen), []
            marked = [one for one in seen if _is_marked(one.metadata)]
            foreign += sum(one.account == bystander.account.id for one in marked)
            own += sum(one.account == mallory.account.id for one in marked)
            if last:
                break
        sent = sum(job.result() for job in jobs)
    figure = f"{sent:,} sent; another's {calls:,} calls: {failed} failed, {foreign} with a header of these"
    ok = not failed and not foreign and sent >= _DISORDERLY and own > sent // 2
    yield Row(
        "A10", "header tables in disorder", figure, "0 failed, 0 foreign", f"its own: {own:,} with one", ok
    )


def _neighbour(crew: Crew, edge: Edge, kind: Kind, jobs: list[Future[Any]]) -> tuple[int, int]:
    failed = calls = 0
    while not calls or not all(job.done() for job in jobs):
        outcome = crew.neighbours_calls(edge, kind, 3).result()
        failed, calls = failed + outcome.failed, calls + outcome.failed + outcome.good
    return failed, calls


def _crowd(
    crew: Crew, edge: Edge, under: Edge, folder: Path, count: int, memory: int
) -> tuple[list[Held], int]:
    target = Target(under.port, edge.installation.edge_ca_file, "")

    def begin(_: int, until: Path, ready: Path) -> Future[Held]:
        return crew.attackers.submit(hold_connections, target, count // WORKERS, until, ready)

    with held(begin, folder, WORKERS) as found:
        grown = max(0, memory_bytes(edge) - memory)
    return found, grown


def _uncounted(config: Json) -> None:
    manager = config["overload_manager"]
    manager["resource_monitors"] = [
        one for one in manager["resource_monitors"] if "connections" not in one["name"]
    ]


def _is_marked(metadata: list[tuple[str, Any]]) -> bool:
    return any("mallory" in str(value) or "poison" in name for name, value in metadata)


def _seconds_until(condition: Any, timeout_s: float = 60.0) -> float:
    began = time.monotonic()
    while not condition() and time.monotonic() < began + timeout_s:
        time.sleep(0.1)
    return time.monotonic() - began
