"""Each attack of `make attack-keys` in small: within its bound, and beyond it once its control is off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.keys.__main__ import ATTACKS
from tests.attacks.keys.row import Attack, Trial


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.row} {attack.what}")
async def test_an_attack_fails_with_its_control_and_succeeds_without(attack: Attack, tmp_path: Path) -> None:
    """C1, C2, C4 to C7, C10, C12, D1 to D5, D7 to D10, D14, D15, D17 to D19, D21 to D23, D26, D27."""
    figures = {}
    for twin in (False, True):
        folder = tmp_path / str(twin)
        folder.mkdir()
        figures[twin] = await attack.run(Trial(folder, attack.small, twin))
    assert figures[False] <= attack.bound < figures[True]
