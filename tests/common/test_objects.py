"""The folder store: whole objects or none, and no key leads out of the folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import objectkeys
from services.common.clock import SystemClock
from services.common.errors import ResourceExhausted, Unavailable
from services.common.objects import FolderStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """An empty store."""
    return FolderStore(tmp_path / "objects", SystemClock())


@given(st.text(max_size=40))
def test_every_key_that_passes_stays_below_the_folder(key: str) -> None:
    if objectkeys.KEY.fullmatch(key):
        assert os.path.normpath(f"/folder/{key}") == f"/folder/{key}"


def test_files_and_folders_are_the_owners_alone(store: FolderStore, tmp_path: Path) -> None:
    store.put("a/b", [b"x"])
    assert (tmp_path / "objects" / "a" / "b").stat().st_mode & 0o077 == 0
    assert (tmp_path / "objects" / "a").stat().st_mode & 0o077 == 0


def test_a_put_that_fails_half_way_leaves_the_old_object_and_no_part(
    store: FolderStore, tmp_path: Path
) -> None:
    store.put("a/b", [b"old"])

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError):
        store.put("a/b", parts())
    assert store.get("a/b") == b"old"
    assert [path.name for path in (tmp_path / "objects" / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, ResourceExhausted), (errno.EDQUOT, ResourceExhausted), (errno.EIO, Unavailable)],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_a_typed_error_and_changes_nothing(
    store: FolderStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[Exception],
    call: str,
) -> None:
    """F16, F17's class: nothing is acknowledged that may not be there."""
    store.put("a/b", [b"old"])

    def fail(*_arguments: Any) -> None:
        raise OSError(number, "failed")

    with monkeypatch.context() as patch:
        owner: object = os if call == "fsync" else Path
        patch.setattr(owner, call, fail)
        with pytest.raises(error) as caught:
            store.put("a/b", [b"new"])
    assert str(tmp_path) not in str(caught.value)
    assert store.get("a/b") == b"old"
    assert store.list("") == ["a/b"]


def test_a_key_below_an_object_is_a_typed_error(store: FolderStore) -> None:
    store.put("a", [b"x"])
    with pytest.raises(Unavailable):
        store.put("a/b", [b"y"])
    assert store.get("a") == b"x"


def test_data_and_folder_are_synced_in_the_order_that_a_power_cut_needs(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F18: data before name, name before answer."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split("-")[0])
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    store.put("a/b", [b"x"])
    assert steps == [".put", "rename", "a", "objects"]


def test_a_start_removes_what_a_crash_left_but_not_what_another_process_writes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, SystemClock())
    store.put("a/b", [b"x"])
    fresh, stale = tmp_path / "a" / ".put-fresh", tmp_path / "a" / ".put-stale"
    fresh.write_bytes(b"x")
    stale.write_bytes(b"x")
    day_old = SystemClock().now_s() - 86_400
    os.utime(stale, (day_old, day_old))
    store = FolderStore(tmp_path, SystemClock())
    assert fresh.exists()
    assert not stale.exists()
    assert store.list("") == ["a/b"]


def test_a_url_names_the_store(tmp_path: Path) -> None:
    open_store(f"file:{tmp_path}").put("a", [b"x"])
    assert open_store(f"file://{tmp_path}").get("a") == b"x"
    for url in ("", "file:", "gs://bucket", str(tmp_path)):
        with pytest.raises(ValueError, match="object store"):
            open_store(url)
