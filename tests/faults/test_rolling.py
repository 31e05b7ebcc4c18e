"""G8, C3: an upgrade and a new authority under load, without a failed call."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealcomb_client import Client
from services.common.methods import SERVICES
from tests.faults.fleet import fleet
from tests.faults.rolling import COUNTS, killed, upgraded

ROUNDS = int(os.environ.get("SEALCOMB_TEST_ROUNDS", "2"))


# On a busy machine most of it is the start of eight processes.
@pytest.mark.timeout(600)
def test_every_replica_is_restarted_and_the_authority_changed_without_a_failed_call(tmp_path: Path) -> None:
    """The twin kills a gateway instead: the callers see that."""
    with fleet(tmp_path, COUNTS) as installation:
        with Client(installation.connection()) as client:
            token = client.accounts.create("bees").token
        old = installation.keys.ca_file.read_bytes()
        report = upgraded(installation, ROUNDS, token)
        assert not report.outcome.failures, report.outcome.failures[:10]
        assert set(report.restarts.values()) == {ROUNDS}
        assert report.authorities >= 1
        for service in SERVICES:
            assert old not in (installation.keys.tls_dir(service) / "ca.pem").read_bytes()
        assert all(count > 20 for count in report.outcome.good.values()), report.outcome.good
        killed(installation, token, report)
        assert report.failed_by_kills > 0
