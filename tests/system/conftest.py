"""One running installation for all tests of whole processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.installation import Account, Installation, running


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """All services and Envoy, with the demo."""
    with running(tmp_path_factory.mktemp("installation"), demo=True) as installation:
        yield installation


@pytest.fixture(scope="session")
def account(installation: Installation) -> Account:
    """An account that tests may share where they use collections of their own."""
    return installation.new_account()
