"""What `sealcomb-admin verify` says of logs and snapshots, and how settings are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.standalone.admin.contents import Log
from services.standalone.admin.managed import InstallationUnreadable, of_data_folder, of_settings_folder
from services.standalone.admin.verify import log_fault


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        (Log("c", 0, 0, 0, 0, {}), ""),
        (Log("c", 5, 1, 5, 5, {}), ""),
        (Log("c", 5, 1, 5, 4, {}), "records"),
        (Log("c", 5, 1, 4, 4, {}), "records"),
        (Log("c", 5, 4, 5, 2, {3: "a/c/s3"}), ""),
        (Log("c", 5, 0, 0, 0, {5: "a/c/s3"}), ""),
        (Log("c", 5, 4, 5, 2, {}), "snapshot"),
        (Log("c", 5, 4, 5, 2, {2: "a/c/s3"}), "snapshot"),
        (Log("c", 5, 4, 5, 2, {3: "a/c/gone"}), "snapshot"),
        (Log("c", 5, 0, 0, 0, {}), "snapshot"),
    ],
)
def test_a_log_with_a_gap_or_without_its_snapshot_is_found(log: Log, fault: str) -> None:
    said = log_fault(log, {"a/c/s3"})
    assert (fault in said) if fault else said == ""


def test_settings_that_are_missing_are_named_and_values_are_not(tmp_path: Path) -> None:
    with pytest.raises(InstallationUnreadable, match="no keys"):
        of_data_folder(tmp_path / "data")
    for service in ("gateway", "keyvault", "vectorstore", "ingest"):
        (tmp_path / f"{service}.env").write_text("# a comment\nSEALCOMB_LISTEN=the-secret\n")
    with pytest.raises(InstallationUnreadable, match="SEALCOMB_DATABASE_URL") as caught:
        of_settings_folder(tmp_path)
    assert "the-secret" not in str(caught.value)
    (tmp_path / "ingest.env").unlink()
    with pytest.raises(InstallationUnreadable, match=r"ingest\.env"):
        of_settings_folder(tmp_path)
