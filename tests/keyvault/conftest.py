"""Fixtures of keyvault's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.keyvault.kms.file import FileKms
from tests.keyvault.rig import MemoryKms, Rig


@pytest.fixture(params=["file", "memory"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """A keyvault over each KMS."""
    kms = FileKms(bytes(range(32))) if request.param == "file" else MemoryKms()
    rig = Rig(tmp_path / "keyvault.db", kms)
    yield rig
    rig.close()


@pytest.fixture
async def memory_rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A keyvault over the KMS in memory."""
    rig = Rig(tmp_path / "keyvault.db", MemoryKms())
    yield rig
    rig.close()
