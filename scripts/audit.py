"""Look every locked package up among the known vulnerabilities, and say plainly when that was not possible.

pip-audit passes when the service knows none of the packages or cannot be reached for them, so its
exit status alone proves nothing: this counts what was really looked up. Exit status: 0 all looked up and
clean, 1 something is vulnerable, 2 the look-up did not happen for some (0 with --tolerate-offline,
which `make check` uses so that it runs without a network; the words on the screen stay the same).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LOCKS = ("requirements/dev.txt", "requirements/model.txt")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Findings:
    """What one audit found: how many packages were looked up, which were not, what is vulnerable."""

    looked_up: int
    skipped: tuple[str, ...]
    vulnerable: tuple[str, ...]


def read(report: str) -> Findings:
    """Findings from pip-audit's JSON; an empty or broken report counts as nothing looked up."""
    try:
        rows = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Findings(0, ("everything",), ())
    skipped = tuple(row["name"] for row in rows if "skip_reason" in row)
    vulnerable = tuple(
        f"{row['name']} {row['version']}: {found['id']}" for row in rows for found in row.get("vulns", ())
    )
    return Findings(len(rows) - len(skipped), skipped or (() if rows else ("everything",)), vulnerable)


def audit() -> Findings:
    """Ask pip-audit about the locks as they are, without resolving or installing anything."""
    command = [str(Path(sys.executable).parent / "pip-audit"), "--disable-pip", "--no-deps", "--format=json"]
    command += ["--progress-spinner=off", "--timeout=15"]
    command += [argument for lock in LOCKS for argument in ("--requirement", lock)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return read("")
    return read(done.stdout)


def main() -> int:
    """Run from the command line; see the module for the exit status."""
    parser = argparse.ArgumentParser(description="Audit the locked dependencies.")
    parser.add_argument(
        "--tolerate-offline", action="store_true", help="exit 0 when nothing could be looked up"
    )
    tolerate = parser.parse_args().tolerate_offline
    findings = audit()
    for line in findings.vulnerable:
        print(f"vulnerable: {line}")
    print(f"audit: {findings.looked_up} packages looked up, {len(findings.vulnerable)} vulnerabilities")
    if findings.skipped:
        print(f"AUDIT INCOMPLETE: {len(findings.skipped)} not looked up; run `make audit` with a network")
    if findings.vulnerable:
        return 1
    return 2 if findings.skipped and not tolerate else 0


if __name__ == "__main__":
    sys.exit(main())
