"""A move of an installation keeps its services from starting until all of it is there."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from services.standalone.admin import main
from services.standalone.admin.restore import Restored
from services.standalone.config import SERVICE_ORDER, Layout, StandaloneSettings
from services.standalone.pki import ensure_installation


def test_nothing_starts_on_what_is_moved_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written between the copy and its putting back would stay behind."""
    data = tmp_path / "data"
    data.mkdir()
    keys = ensure_installation(tmp_path / "data.keys")
    layout = Layout(StandaloneSettings(data_dir=data), keys, dict.fromkeys(SERVICE_ORDER, 1))
    for service in SERVICE_ORDER:
        said = layout.environment(service, {})
        (tmp_path / f"{service}.env").write_text("".join(f"{name}={value}\n" for name, value in said.items()))
    steps = []

    def starts() -> bool:
        # As `lock_folder` does, which waits a while for one that ends.
        with (data / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def back_up(*_arguments: Any) -> None:
        steps.append(("backup", starts()))

    async def put_back(*_arguments: Any) -> Restored:
        steps.append(("restore", starts()))
        return Restored(0, 0, 0)

    monkeypatch.setattr(main, "back_up", back_up)
    monkeypatch.setattr(main, "put_back", put_back)
    monkeypatch.setattr(main, "read_backup", lambda folder: folder)
    command = ["--data-dir", str(data), "migrate", str(tmp_path / "move"), "--to", str(tmp_path)]
    done = CliRunner().invoke(main.main, command)
    assert done.exit_code == 0, done.output
    assert steps == [("backup", False), ("restore", False)]
    assert starts()
