"""`--migrate`: needs the database alone, says what is wrong with it, and changes nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.methods import SERVICES
from services.standalone.admin.store import schema_of


def migrate(service: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    if url:
        environment["SEALCOMB_DATABASE_URL"] = url
    command = [sys.executable, "-m", f"services.{service}.main", "--migrate"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_brings_the_schema_up_to_date_with_nothing_but_the_database(
    service: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    done = migrate(service, url)
    assert (done.returncode, done.stderr) == (0, "")
    found = schema_of(url, service)
    assert found.revision == found.head


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    assert migrate("keyvault", f"sqlite:///{tmp_path}/one.db").returncode == 0
    other = migrate("gateway", f"sqlite:///{tmp_path}/one.db")
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "the database is keyvault's" in other.stderr
    unset = migrate("gateway", "")
    assert unset.returncode == 2
    assert "SEALCOMB_DATABASE_URL" in unset.stderr
    away = migrate("gateway", "postgresql://sealcomb:secret-word@127.0.0.1:1/none")
    assert away.returncode == 2
    assert "secret-word" not in away.stderr
    away = migrate("gateway", "postgresql://sealcomb@127.0.0.1:1/none")
    assert away.returncode == 1
    assert "Traceback" not in away.stderr
