"""What keyvault does by itself goes on after any failure, also one that nobody foresaw (D26, F3, F16)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common.errors import ResourceExhausted
from services.keyvault import deletions, moves, reconciliation, retirement
from services.keyvault.kms.file import FileKms
from services.keyvault.ledger import Ledger, LedgerFailed
from services.keyvault.reconciliation import Reconciliation
from services.keyvault.retirement import Retirements
from services.keyvault.statements import StatementSigner
from tests.keyvault.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "keyvault.db", FileKms(bytes(range(32))))
    yield made
    made.close()


class _Failing:
    """Fails once in each way, then says that it was called again."""

    def __init__(self) -> None:
        self.errors: list[Exception] = [
            ResourceExhausted("the storage is full", reason="STORAGE_FULL"),
            LedgerFailed(),
            RuntimeError("nobody foresaw this"),
        ]
        self.came_again = asyncio.Event()

    async def __call__(self, *_arguments: object) -> int:
        if self.errors:
            raise self.errors.pop()
        self.came_again.set()
        return 0


async def _check_goes_on(work: Coroutine[Any, Any, None], failing: _Failing) -> None:
    running = asyncio.create_task(work)
    waiting = asyncio.create_task(failing.came_again.wait())
    done, _ = await asyncio.wait({running, waiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, waiting):
        task.cancel()
    await asyncio.wait({running, waiting})
    assert done == {waiting}


@pytest.mark.parametrize("name", ["deletions", "moves", "retired keys"])
async def test_work_that_fails_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    retirements = Retirements(rig.store, rig.registry)
    module, work, target, step = {
        "deletions": (deletions, rig.deletions.run, rig.deletions, "destroy_due"),
        "moves": (moves, rig.moves.run, rig.moves, "resume"),
        "retired keys": (retirement, retirements.run, retirements, "_destroy"),
    }[name]
    failing = _Failing()
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(target, step, failing)
    await _check_goes_on(work(), failing)


async def test_the_mark_moves_on_after_the_disk_was_full(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D26: a database that is rolled back after a failure of its storage is noticed like any other."""
    ledger = Ledger(tmp_path / "destroyed.ledger", StatementSigner(Ed25519PrivateKey.generate()))
    marking = Reconciliation(rig.store, ledger, rig.clock)
    await marking.at_start()
    await rig.account()
    failing = _Failing()
    monkeypatch.setattr(reconciliation, "_MARK_S", 0.01)
    monkeypatch.setattr(marking, "advance", failing)
    await _check_goes_on(marking.run(), failing)
    ledger.close()
