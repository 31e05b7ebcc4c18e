"""Writes what is in an image as a CycloneDX document: the Python packages, and the system's packages.

The Python packages are listed by cyclonedx-py, which looks into the image's own folder and runs
nothing of it; the system's come from the list that rootfs.py left there. What is not in the document
is not in the image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

_LISTED = Path("usr/share/sealcomb/debian-packages.txt")


def document(root: Path, service: str) -> dict[str, Any]:
    """The document of the image whose root folder this is."""
    (site,) = (root / "opt/sealcomb/lib").glob("python3*/site-packages")
    with tempfile.TemporaryDirectory() as folder:
        # Asked for its path as an interpreter would be: the image's own cannot run outside of it.
        asked = Path(folder) / "python"
        asked.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps([str(site)])}\nEND\n")
        asked.chmod(0o700)
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", str(asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed: dict[str, Any] = json.loads(done.stdout)
    listed["metadata"]["component"] = {"type": "container", "name": f"sealcomb-{service}"}
    listed["components"] += [_of_debian(line) for line in (root / _LISTED).read_text().splitlines()]
    return listed


def _of_debian(line: str) -> dict[str, Any]:
    name, version = line.split()
    purl = f"pkg:deb/debian/{name}@{version}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    """Prints the document, once it is valid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--service", required=True)
    arguments = parser.parse_args()
    text = json.dumps(document(arguments.root, arguments.service), indent=1)
    fault = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        sys.exit(f"sbom: {fault}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
