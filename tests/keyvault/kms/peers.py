"""The real KMSs that the tests start: an OpenBao server, and SoftHSM's token."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.keyvault.kms.pkcs11 import Pkcs11Kms
from services.keyvault.kms.transit import TransitKms

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
_START_S = 20
_POLICY = """
path "{mount}/keys/*" {{ capabilities = ["create", "read", "update", "delete"] }}
path "{mount}/encrypt/*" {{ capabilities = ["update"] }}
path "{mount}/decrypt/*" {{ capabilities = ["update"] }}
"""


class Bao:
    """A `bao` server in memory, over TLS, with a transit mount and a token that may use it alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = folder / "vault-ca.pem"
        self.token_file = folder / "token"
        self.start()

    def start(self) -> None:
        """A server with nothing in it but the mount."""
        command = [
            str(Path(sys.executable).parent / "bao"),
            "server",
            "-dev-tls",
            f"-dev-tls-cert-dir={self.folder}",
            f"-dev-root-token-id={self._root}",
            f"-dev-listen-address=127.0.0.1:{self.port}",
            "-dev-no-store-token",
        ]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s:
            with suppress(httpx.HTTPError, OSError):
                if self.ask("GET", "sys/health")["initialized"]:
                    break
            time.sleep(0.05)
        self.ask("POST", "sys/mounts/transit", type="transit")
        self.ask("PUT", "sys/policies/acl/keyvault", policy=_POLICY.format(mount="transit"))
        made = self.ask("POST", "auth/token/create", policies=["keyvault"], no_parent=True)
        self.token_file.write_text(made["auth"]["client_token"] + "\n")

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """A call as the server's administrator."""
        answer = httpx.request(
            method,
            f"{self.url}/v1/{path}",
            json=body or None,
            headers={"X-Vault-Token": self._root},
            verify=_trusting(self.ca_file),
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else {}

    def kms(self, **values: Any) -> TransitKms:
        """The provider on this server."""
        return TransitKms(self.url, "transit", self.token_file, **{"ca_file": self.ca_file, **values})

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def stop(self) -> None:
        """Ends the server."""
        self._process.terminate()
        self._process.wait(10)


def _trusting(ca_file: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca_file))


@dataclass
class Token:
    """A token of SoftHSM."""

    label: str
    pin_file: Path

    def kms(self, **values: Any) -> Pkcs11Kms:
        """The provider on this token."""
        return Pkcs11Kms(SOFTHSM, self.label, self.pin_file, **values)


def soft_hsm(folder: Path) -> None:
    """Points SoftHSM of this process at a folder."""
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(configuration)


def new_token(folder: Path) -> Token:
    """A new token; before the module is first loaded, or it is not seen."""
    label, pin = "token-" + secrets.token_hex(4), secrets.token_hex(8)
    command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", pin]
    subprocess.run(command, check=True, capture_output=True)
    pin_file = folder / f"{label}.pin"
    pin_file.write_text(pin + "\n")
    return Token(label, pin_file)
