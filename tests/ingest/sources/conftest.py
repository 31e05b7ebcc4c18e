"""One private authority for every vendor's name."""

from __future__ import annotations

import pytest

from tests.ingest.sources.servers.https import Tls, make_tls

NAMES = (
    "api.github.test", "drive.google.test", "api.notion.test", "api.atlassian.test", "slack.test", "s3.test",
    "cloud.test", "site.test", "elsewhere.test", "localhost",
)  # fmt: skip


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"), NAMES)
