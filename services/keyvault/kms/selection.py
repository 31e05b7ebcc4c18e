"""The providers that the settings describe, made ready. SDKs are imported only where they are wanted."""

from __future__ import annotations

from pathlib import Path

from services.common.clock import Clock
from services.keyvault.config import KeyvaultSettings
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.protocol import Kms
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.kms.rootkey import load_root_key


class ProviderNotInstalled(ValueError):
    """The settings name a KMS whose SDK is not installed."""


def open_kms(settings: KeyvaultSettings, clock: Clock) -> KmsRegistry:
    """The chosen KMS, and every other that the settings describe. Raises ValueError."""
    settings.check_kms()
    described = {name: _open(name, settings, clock) for name in sorted(settings.providers)}
    return KmsRegistry(described.pop(settings.kms), described.values())


def _open(name: str, settings: KeyvaultSettings, clock: Clock) -> Kms:
    if name == "file":
        return FileKms(load_root_key(_named(settings.root_key_file), settings.root_passphrase_file))
    raise ValueError(f"the KMS {name!r} is not built yet")


def _named(path: Path | None) -> Path:
    if path is None:
        raise ValueError("a file of the KMS is not named")
    return path
