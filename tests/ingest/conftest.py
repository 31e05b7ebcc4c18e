"""The engines that ingest's database may be: what holds on one holds on the other."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/contract.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_database(f"i{secrets.token_hex(6)}")
