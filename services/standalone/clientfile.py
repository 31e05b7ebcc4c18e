"""`client.env`: how the installation's own user reaches it, readable by that user alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from services.standalone.pki import write_file

ENDPOINT = "SEALCOMB_ENDPOINT"
CA_FILE = "SEALCOMB_CA_FILE"
TOKEN = "SEALCOMB_TOKEN"  # noqa: S105  (names, not tokens)
OPERATOR_TOKEN = "SEALCOMB_OPERATOR_TOKEN"  # noqa: S105
_NAMES = (ENDPOINT, CA_FILE, TOKEN, OPERATOR_TOKEN)


def read_client_file(path: Path) -> dict[str, str]:
    """The values in the file; none where there is no file."""
    if not path.exists():
        return {}
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: value for name, equals, value in lines if equals and name in _NAMES}


def write_client_file(path: Path, values: Mapping[str, str]) -> None:
    """Replaces the file. Mode 0600, since it holds tokens."""
    lines = [f"{name}={values[name]}\n" for name in _NAMES if values.get(name)]
    write_file(path, "".join(lines).encode("utf-8"))
