"""The Makefile explains itself, and CI runs what a person runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def _make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: ([a-z0-9-]+)$", text, re.MULTILINE))
    listed = set(re.findall(r"^  ([a-z0-9-]+) ", _make("help"), re.MULTILINE))
    assert {"setup", "run", "test", "check", "format", "protos", "lock", "bench", "clean"} <= phony
    assert listed == phony


def test_make_alone_prints_the_help() -> None:
    assert _make() == _make("help")


def test_ci_runs_the_targets_a_person_runs() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make test", "make check"]
