"""Keyvault's settings."""

from __future__ import annotations

from pathlib import Path

from services.common.settings import ServiceSettings

_SQLITE = "sqlite:///"


class KeyvaultSettings(ServiceSettings):
    """What keyvault is told by its environment."""

    # Ed25519 private key, PEM: signs permits.
    context_key_file: Path
    # The installation's root key: 32 bytes, or the same sealed under a passphrase.
    root_key_file: Path
    # File with the passphrase of a sealed root key.
    root_passphrase_file: Path | None = None

    def check_root_key_place(self) -> None:
        """Raises ValueError for a root key that lies in the database's own folder.

        A copy of that folder, such as a backup, would hold the data keys and what opens them.
        """
        if not self.database_url.startswith(_SQLITE):
            return
        folder = Path(self.database_url.removeprefix(_SQLITE)).resolve().parent
        if self.root_key_file.resolve().is_relative_to(folder):
            raise ValueError(
                "the root key file lies in the database's folder; move it to a folder of its own"
            )
