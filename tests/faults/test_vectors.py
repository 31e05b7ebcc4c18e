"""A vectorstore killed, and with a failing disk, at its durable calls: a part of `make faults-vectors`.

F5, F12, F16, F17, F18: nothing acknowledged is lost, nothing that was refused is there, no answer is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.vectors.__main__ import hasty, say
from tests.faults.vectors.full_disk import full_disk
from tests.faults.vectors.oracle import Oracle
from tests.faults.vectors.random_kills import random_kills
from tests.faults.vectors.rig import running_rig
from tests.faults.vectors.stages import STAGES
from tests.faults.vectors.strace import spread
from tests.faults.vectors.sweep import Row, Sweep
from tests.faults.vectors.tails import tails


def hold(rows: Sequence[Row]) -> None:
    """Every fault was met, and none did harm."""
    assert rows
    for row in rows:
        assert (row.lost, row.wrong) == (0, 0), row
        assert row.times, row


@pytest.mark.timeout(400)
async def test_f12_kill_9_and_errors_at_the_durable_calls_of_a_write_and_its_snapshot_lose_nothing(
    tmp_path: Path,
) -> None:
    """F12, F17, F18: one of each kind of call; the target takes them all."""
    stage = next(stage for stage in STAGES if stage.name == "snapshot, trim")
    async with running_rig(tmp_path / "rig") as rig:
        sweep = Sweep(rig, stage)
        await sweep.prepare()
        kinds = {site.call for site in sweep.sites}
        assert {"pwrite64", "fdatasync", "openat", "write", "fsync", "rename"} <= kinds
        hold(await sweep.kills(spread(sweep.sites, 1)))
        failing = [
            site for site in spread(sweep.sites, 1) if "objects" not in site.what or site.call == "fsync"
        ]
        hold(await sweep.errors(failing, "EIO"))


@pytest.mark.timeout(400)
async def test_f12_twin_a_store_that_answers_before_its_commit_loses_what_it_acknowledged() -> None:
    """The same kills see it."""
    assert (await hasty(2)).lost


@pytest.mark.timeout(400)
async def test_kill_9_at_random_under_load_loses_nothing(tmp_path: Path) -> None:
    async with running_rig(tmp_path / "rig") as rig:
        row = await random_kills(rig, 12)
    hold([row])
    assert row.acknowledged > 50


@pytest.mark.timeout(400)
async def test_f5_bytes_of_log_head_and_snapshot_cut_or_flipped_are_refused_by_name(tmp_path: Path) -> None:
    """F5 on the store's own files; each 40th byte here, every one in the target."""
    rows = await tails(tmp_path, stride=40)
    assert len(rows) == 4
    hold(rows)


@pytest.mark.timeout(400)
async def test_f16_a_full_disk_is_told_stops_writes_alone_and_ends_by_itself(tmp_path: Path) -> None:
    """F16: the typed refusal, the metric, the health of writes; reads go on."""
    async with running_rig(tmp_path / "rig") as rig:
        row = await full_disk(rig, 2)
        said = rig.errors.read_text()
    hold([row])
    assert said.count("writes are refused until the storage takes one again") == 2
    assert said.count("the storage takes writes again") == 2


def test_a_verdict_that_finds_harm_is_not_held() -> None:
    """The twin of `hold`."""
    fine = Row("kill -9", "somewhere", times=1)
    hold([fine])
    for bad in (replace(fine, lost=1), replace(fine, wrong=1), replace(fine, times=0)):
        with pytest.raises(AssertionError):
            hold([bad])


def test_the_table_fails_for_harm_and_for_a_fault_that_was_not_met() -> None:
    """What the exit code of the target counts."""
    fine = Row("kill -9", "somewhere", times=1)
    assert not say(fine)
    for bad in (
        replace(fine, lost=1),
        replace(fine, wrong=1),
        replace(fine, not_met=1),
        replace(fine, times=0),
    ):
        assert say(bad)


def test_a_creation_in_doubt_that_is_there_stays_there_for_the_oracle() -> None:
    """Only what is being deleted may go by itself; all else that was seen once must be there."""
    rig: Any = None
    oracle = Oracle(rig)
    oracle.possible = [{}, {"new": {}}]
    assert not oracle._may_settle({"new": {}})
    oracle._going = {"new"}
    assert oracle._may_settle({"new": {}})
