"""The providers that the settings describe, made ready. SDKs are imported only where they are wanted."""

from __future__ import annotations

from pathlib import Path

from services.common.clock import Clock
from services.common.errors import SealcombError
from services.keyvault.config import KeyvaultSettings
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.guard import GuardedKms
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
    try:
        kms = _open_remote(name, settings, clock)
    except ModuleNotFoundError as error:
        extra = "keyvault-" + name.removesuffix("-root")
        raise ProviderNotInstalled(
            f"the KMS {name!r} needs {error.name}; install sealcomb[{extra}]"
        ) from None
    except SealcombError as error:
        raise ValueError(f"the KMS {name!r}: {error.message}") from None
    return GuardedKms(kms, clock, settings.kms_timeout_s, settings.kms_calls_per_second)


def _open_remote(name: str, settings: KeyvaultSettings, clock: Clock) -> Kms:
    if name == "transit":
        from services.keyvault.kms.transit import TransitKms

        return TransitKms(
            settings.transit_url,
            settings.transit_mount,
            _named(settings.transit_token_file),
            ca_file=settings.transit_ca_file,
            namespace=settings.transit_namespace,
            timeout_s=settings.kms_timeout_s,
        )
    if name == "pkcs11":
        from services.keyvault.kms.pkcs11 import Pkcs11Kms

        return Pkcs11Kms(
            _named(settings.pkcs11_module), settings.pkcs11_token, _named(settings.pkcs11_pin_file)
        )
    from services.keyvault.kms.aws import AwsKms
    from services.keyvault.kms.aws_client import AwsClient
    from services.keyvault.kms.aws_root import AwsRootKms

    client = AwsClient(
        settings.aws_region,
        settings.aws_account_id,
        clock,
        endpoint_url=settings.aws_endpoint_url,
        ca_file=settings.aws_ca_file,
        timeout_s=settings.kms_timeout_s,
    )
    return AwsKms(client) if name == "aws" else AwsRootKms(client, settings.aws_root_key_arn, clock)


def _named(path: Path | None) -> Path:
    if path is None:
        raise ValueError("a file of the KMS is not named")
    return path
