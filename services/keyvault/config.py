"""Keyvault's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings import ServiceSettings

_SQLITE = "sqlite:///"
_ACCOUNT_ID = r"^\d{12}$"
_REGION = r"^[a-z0-9-]{1,32}$"
# The longest permit.
PERMIT_S_MAX = 3600
_URL = r"^https?://[^\s]+$"


class KeyvaultSettings(ServiceSettings):
    """What keyvault is told by its environment."""

    # Ed25519 private key, PEM: signs permits.
    context_key_file: Path
    # Which KMS makes new account keys. Any other that is configured below serves the keys it holds.
    kms: Literal["file", "aws", "aws-root", "transit", "pkcs11"] = "file"
    # One call of a KMS, its repetitions included.
    kms_timeout_s: float = Field(default=5.0, gt=0, le=60)
    # What one account may ask of a KMS, so that it does not use up the quota of all.
    kms_calls_per_second: float = Field(default=50.0, gt=0)

    # How long what took a data key before it was replaced may still seal with it. At least as long
    # as a permit: nothing that a service does with a key that it took lasts longer.
    aged_key_s: float = Field(default=3600.0, ge=PERMIT_S_MAX, allow_inf_nan=False)
    # How many data keys one service may ask for in a second, over all accounts; four seconds' worth at once.
    releases_per_second: float = Field(default=500.0, gt=0)

    # file: the installation's root key, 32 bytes or the same sealed under a passphrase.
    root_key_file: Path | None = None
    # file: the passphrase of a sealed root key.
    root_passphrase_file: Path | None = None

    # What was destroyed, kept apart from the database; beside the root key where that is a file.
    ledger_file: Path | None = None

    # aws, aws-root: keys of any other region, and our own keys of any other account, are refused.
    aws_region: str = Field(default="", pattern=rf"^$|{_REGION}")
    aws_account_id: str = Field(default="", pattern=rf"^$|{_ACCOUNT_ID}")
    # aws, aws-root: where KMS and STS answer instead of at AWS, such as a VPC endpoint.
    aws_endpoint_url: str = Field(default="", pattern=rf"^$|{_URL}")
    # aws, aws-root: PEM file of the authorities that the endpoint's certificate is checked against.
    aws_ca_file: Path | None = None
    # aws-root: the one KMS key that account keys are wrapped under.
    aws_root_key_arn: str = ""

    # transit (OpenBao, Vault): its address, mount, and a file with the token, read again when it changes.
    transit_url: str = Field(default="", pattern=rf"^$|{_URL}")
    transit_mount: str = Field(default="transit", pattern=r"^[A-Za-z0-9_/-]{1,64}$")
    transit_token_file: Path | None = None
    transit_ca_file: Path | None = None
    transit_namespace: str = ""

    # pkcs11: the module's library, the token's label, and a file with its PIN.
    pkcs11_module: Path | None = None
    pkcs11_token: str = ""
    pkcs11_pin_file: Path | None = None

    @property
    def providers(self) -> frozenset[str]:
        """The KMSs that the settings describe."""
        described = {
            "file": self.root_key_file is not None,
            "aws": bool(self.aws_region and self.aws_account_id),
            "aws-root": bool(self.aws_region and self.aws_account_id and self.aws_root_key_arn),
            "transit": bool(self.transit_url and self.transit_token_file),
            "pkcs11": bool(self.pkcs11_module and self.pkcs11_token and self.pkcs11_pin_file),
        }
        return frozenset(name for name, is_described in described.items() if is_described)

    def check_kms(self) -> None:
        """Raises ValueError where the chosen KMS is not described, or one would be asked in clear."""
        if self.kms not in self.providers:
            missing = "SEALCOMB_ROOT_KEY_FILE" if self.kms == "file" else "see docs/kms.md"
            raise ValueError(f"settings missing for the KMS {self.kms!r}: {missing}")
        for url in (self.transit_url, self.aws_endpoint_url):
            if url.startswith("http://") and not url.startswith(("http://127.0.0.1:", "http://[::1]:")):
                raise ValueError("the address of a KMS must be https")

    def check_root_key_place(self) -> None:
        """Raises ValueError for a root key or a ledger that lies in the database's own folder.

        A copy of that folder, such as a backup, would hold the data keys and what opens them; and put
        back, it would put back an older ledger with it.
        """
        if self.database_file is None:
            return
        folder = self.database_file.resolve().parent
        for what, path in (("root key file", self.root_key_file), ("ledger", self.ledger)):
            if path is not None and path.resolve().is_relative_to(folder):
                raise ValueError(f"the {what} lies in the database's folder; move it to a folder of its own")

    @property
    def database_file(self) -> Path | None:
        """The file of an SQLite database."""
        if not self.database_url.startswith(_SQLITE):
            return None
        return Path(self.database_url.removeprefix(_SQLITE))

    @property
    def ledger(self) -> Path | None:
        """Where the ledger is; None where nobody said where."""
        if self.ledger_file is not None or self.root_key_file is None:
            return self.ledger_file
        return self.root_key_file.with_name("destroyed.ledger")
