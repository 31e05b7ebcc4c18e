"""On a disk that is really full no key goes out unrecorded, and room is all it takes (D17, F16)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def _run(folder: Path, *arguments: str) -> dict[str, Any]:
    folder.mkdir()
    script = [sys.executable, "-m", "tests.keyvault.full_disk", str(folder), *arguments]
    # As root, or as one in a namespace of our own; where neither is allowed the script limits its files.
    for isolated in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"], []):
        if (
            not isolated
            or subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode == 0
        ):
            break
    done = subprocess.run(
        [*isolated, *script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_full_disk_keeps_every_key_in_until_there_is_room(tmp_path: Path) -> None:
    """D17, F16: each key that left has its record, and the chain holds."""
    found = _run(tmp_path / "disk")
    assert found["refused"] == 20
    assert found["reasons"] == (["STORAGE_FULL"] if found["mounted"] else ["STORAGE_FAILED"])
    assert found["released"] == found["records"]
    assert found["again"]
    assert found["first_bad"] is None


def test_once_nothing_is_recorded_keys_leave_on_a_full_disk(tmp_path: Path) -> None:
    """D17's twin."""
    found = _run(tmp_path / "disk", "unrecorded")
    assert found["released"] == 500
    assert found["records"] == found["refused"] == 0
