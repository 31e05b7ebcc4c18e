"""What the tests of the client share: a fake edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_edge import FakeEdge, serving


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[FakeEdge]:
    """A fake edge."""
    with serving(tmp_path) as edge:
        yield edge
