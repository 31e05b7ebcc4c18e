"""A fault at every durable system call of a stage, one in each life, and what is there afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from tests.faults.vectors.oracle import Oracle, Verdict, content_of
from tests.faults.vectors.rig import Rig
from tests.faults.vectors.stages import NAME, Stage
from tests.faults.vectors.strace import Site, attached, hit, sites, touched

_QUIET_S = 1.0
_HIT_WITHIN_S = 8.0
_RESUMES_WITHIN_S = 30.0
_TRIES = 2
# Calls that an error can be put into; those of the event loop's own pipes are told apart by their file.
_FAILING = frozenset(
    {"openat", "write", "writev", "pwrite64", "pwritev", "ftruncate", "fsync", "fdatasync", "rename", "mkdir"}
)


@dataclass
class Row:
    """One line of the table."""

    fault: str
    where: str
    times: int = 0
    not_met: int = 0
    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    recovery_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, context: str) -> None:
        """Counts what a comparison found."""
        self.lost += verdict.lost
        self.wrong += verdict.wrong
        self.notes += [f"{context}: {note}" for note in verdict.notes]


_Look = Callable[[Row, Oracle, str], Awaitable[None]]


class Sweep:
    """Faults of one stage on one rig."""

    def __init__(self, rig: Rig, stage: Stage) -> None:
        self._rig = rig
        self._stage = stage
        self._before = Oracle(rig)
        self._output = rig.folder / "strace.txt"
        self.sites: list[Site] = []

    async def prepare(self) -> None:
        """Makes what the stage begins with, and learns its durable calls."""
        rig = self._rig
        rig.settings = self._stage.settings_before
        if not self._stage.fresh:
            await rig.begin()
            await self._before.read()
            await self._stage.prepare(self._before)
            await rig.kill()
        rig.put_aside("before")
        rig.settings = self._stage.settings
        oracle = self._before.copy()
        pid = await rig.conceive()
        if not self._stage.start:
            await rig.go()
            await self._warm(oracle)
        async with attached(pid, self._output, follow=True):
            if self._stage.start:
                await rig.go()
                await self._warm(oracle)
            await self._stage.act(oracle)
            await self._quiet()
        self.sites = sites(self._output, await rig.threads(), rig.data)
        if self._stage.start:
            self.sites = [site for site in self.sites if site.thread == "MainThread"]
        assert self.sites, f"{self._stage.name} writes nothing"
        assert not oracle.refusals, oracle.refusals
        verdict = await oracle.compare()
        assert not verdict.lost + verdict.wrong, verdict.notes
        await rig.kill()

    def rows(self, chosen: Iterable[Site], fault: str) -> dict[str, Row]:
        """Empty lines of the table by the kind of call."""
        return {key: Row(fault, key) for key in dict.fromkeys(self._key(site) for site in chosen)}

    async def kills(self, chosen: Iterable[Site]) -> list[Row]:
        """kill -9 just before each of the calls."""
        chosen = list(chosen)
        rows = self.rows(chosen, "kill -9")
        for site in chosen:
            await self._until_met(site, rows[self._key(site)], "signal=KILL", self._killed)
        return list(rows.values())

    async def errors(self, chosen: Iterable[Site], number: str) -> list[Row]:
        """Each of the calls fails once."""
        chosen = [site for site in chosen if site.call in _FAILING]
        rows = self.rows(chosen, number)
        for site in chosen:
            await self._until_met(site, rows[self._key(site)], f"error={number}", self._failed)
        return list(rows.values())

    def _key(self, site: Site) -> str:
        return f"{self._stage.name}: {site.call} {site.what}"

    async def _until_met(self, site: Site, row: Row, fault: str, look: _Look) -> None:
        for _ in range(_TRIES):
            if await self._once(site, row, fault, look):
                row.times += 1
                return
        row.not_met += 1

    async def _once(self, site: Site, row: Row, fault: str, look: _Look) -> bool:
        rig = self._rig
        rig.take_back("before")
        oracle = self._before.copy()
        pid = await rig.conceive()
        inject = f"{site.call}:{fault}:when={site.number}"
        if self._stage.start:
            # Its main thread alone: what a start does to files is done there.
            async with attached(pid, self._output, follow=False, inject=inject):
                if await rig.go():
                    await self._warm_if_it_lives(oracle)
                met = await self._met(fault)
        else:
            await rig.go()
            await self._warm(oracle)
            thread = (await rig.threads()).get(site.thread)
            async with attached(thread or pid, self._output, follow=thread is None, inject=inject):
                await self._stage.act(oracle)
                met = await self._met(fault)
        if met:
            row.acknowledged += oracle.acknowledged
            await look(row, oracle, f"{site}")
        await rig.kill()
        return met

    async def _killed(self, row: Row, oracle: Oracle, context: str) -> None:
        await self._rig.ended()
        await self._again(row, oracle, context)

    async def _failed(self, row: Row, oracle: Oracle, context: str) -> None:
        """Reads go on, writes do again by themselves, and a restart finds the same."""
        if self._rig.alive:
            row.add(await oracle.compare(), context)
            started = time.monotonic()
            while not await oracle.upsert(NAME, content_of(range(900_000, 900_003))):
                if NAME not in oracle.possible[0]:
                    break
                if time.monotonic() - started > _RESUMES_WITHIN_S:
                    row.add(Verdict(wrong=1, notes=[f"stays refused: {oracle.refusals[-1]}"]), context)
                    break
                await asyncio.sleep(0.05)
            row.recovery_s = max(row.recovery_s, time.monotonic() - started)
            row.add(await oracle.compare(), context)
        elif not self._stage.start:
            row.add(Verdict(wrong=1, notes=["the process ended"]), context)
        await self._rig.kill()
        await self._again(row, oracle, context)

    async def _again(self, row: Row, oracle: Oracle, context: str) -> None:
        started = time.monotonic()
        await self._rig.begin()
        row.add(await oracle.compare(), context)
        row.recovery_s = max(row.recovery_s, time.monotonic() - started)
        if NAME in oracle.possible[0]:
            assert await oracle.upsert(NAME, content_of(range(910_000, 910_003))), oracle.refusals
            row.add(await oracle.compare(), context)

    async def _met(self, fault: str) -> bool:
        end = time.monotonic() + _HIT_WITHIN_S
        while time.monotonic() < end:
            if fault.startswith("signal") and not self._rig.alive:
                return True
            seen = hit(self._output, self._rig.data)
            if seen is not None and not fault.startswith("signal"):
                return seen[1] != "elsewhere"
            await asyncio.sleep(0.02)
        return False

    async def _warm(self, oracle: Oracle) -> None:
        """Everything is open, and every thread is there that a first call begins."""
        await oracle.read()

    async def _warm_if_it_lives(self, oracle: Oracle) -> None:
        try:
            await oracle.read()
        except Exception:  # noqa: BLE001  (whatever a dying process answers)
            return

    async def _quiet(self) -> None:
        """Waits until nothing durable was done for a while."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < _QUIET_S:
            await asyncio.sleep(0.05)
            count = touched(self._output, self._rig.data)
            if count != last:
                last, since = count, time.monotonic()
