"""One running edge for the tests that do not break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import ids
from tests.gateway.rig import Edge, running_edge
from tests.postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """A whole edge with generous limits, shared."""
    with running_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL server; each test makes a database of its own."""
    with running_postgres(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database, on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    server = request.getfixturevalue("postgres")
    return str(server.make_database("d" + ids.new_id()))
