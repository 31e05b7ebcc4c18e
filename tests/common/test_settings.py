"""Settings that every service has: where a database may be (G10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.common.settings import ServiceSettings


def settings(tmp_path: Path, url: str, **more: Any) -> ServiceSettings:
    return ServiceSettings(
        listen="127.0.0.1:0", tls_dir=tmp_path, context_trust_dir=tmp_path, database_url=url, **more
    )


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///data/keyvault.db",
        "postgresql://sealcomb@127.0.0.1:5432/sealcomb",
        "postgresql+psycopg://sealcomb@localhost/sealcomb",
        "postgresql://sealcomb@/sealcomb?host=/run/postgresql",
        "postgresql://sealcomb@db.example/sealcomb?sslmode=verify-full&sslrootcert=ca.pem&passfile=p",
    ],
)
def test_a_database_here_or_by_verified_tls_is_taken(tmp_path: Path, url: str) -> None:
    assert settings(tmp_path, url).database_url == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://sealcomb@db.example/sealcomb",
        "postgresql+psycopg://sealcomb@db.example/sealcomb?sslmode=require",
        "postgresql://sealcomb@127.0.0.1.example/sealcomb",
        "postgresql://sealcomb@/sealcomb?host=db.example",
        "postgresql://sealcomb@localhost/sealcomb?hostaddr=192.0.2.7",
        "postgresql://sealcomb@/sealcomb?service=elsewhere",
        "postgresql://sealcomb@db.example/s?sslmode=verify-full&sslmode=disable",
    ],
)
def test_a_database_that_a_network_could_read_is_refused(tmp_path: Path, url: str) -> None:
    """G10; the twin is the setting that lets it."""
    with pytest.raises(ValidationError) as refused:
        settings(tmp_path, url)
    assert refused.value.errors()[0]["loc"] == ("database_url",)
    assert settings(tmp_path, url, database_insecure=True).database_url == url


@pytest.mark.parametrize(
    "url",
    ["postgresql://sealcomb:canary@127.0.0.1/sealcomb", "postgresql://sealcomb@/s?host=/run&password=canary"],
)
def test_a_password_is_never_in_the_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValidationError, match="passfile"):
        settings(tmp_path, url, database_insecure=True)
