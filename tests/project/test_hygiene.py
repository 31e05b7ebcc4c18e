"""What is committed names no machine and no registry, holds no secret, and is pinned by hash."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from services.gateway import tokens

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = ("requirements/build.txt", "requirements/dev.txt", "requirements/model.txt", "requirements/run.txt")

# Written in pieces, as are the planted ones below, so that this file does not hold what it forbids.
_MACHINE = re.compile(r"(?<![\w.$}-])/(?:wor" r"k|roo" r"t|home/[a-z]+|Users/[A-Za-z]+)/[\w.-]")
_REGISTRY = re.compile(r"py" r"pi\.org|python" r"hosted\.org|registry\.np" r"mjs\.org|deb\.deb" r"ian\.org")
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIV" r"ATE KEY-----")
_TOKEN = re.compile(tokens.PATTERN)
_PIN = re.compile(r"^[A-Za-z0-9][\w.-]*==[^\s;\\]+", re.MULTILINE)


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _matches(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    return found


@pytest.mark.parametrize("pattern", [_MACHINE, _REGISTRY], ids=["machine paths", "registry hosts"])
def test_no_tracked_file_names_this_machine_or_a_registry(pattern: re.Pattern[str]) -> None:
    assert _matches(pattern) == []


@pytest.mark.parametrize("pattern", [_PRIVATE_KEY, _TOKEN], ids=["private keys", "tokens"])
def test_no_tracked_file_holds_a_secret(pattern: re.Pattern[str]) -> None:
    """G16."""
    assert _matches(pattern) == []


@pytest.mark.parametrize(
    ("pattern", "planted"),
    [
        (_MACHINE, "see /" + "work/main/x"),
        (_REGISTRY, "https://" + "py" + "pi.org/simple"),
        (_PRIVATE_KEY, "-----BEGIN EC " + "PRIVATE KEY-----"),
        (_TOKEN, "sealcomb_acc_" + "0" * 26 + "_" + "a" * 36),
    ],
    ids=["machine path", "registry host", "private key", "token"],
)
def test_a_planted_leak_is_found(pattern: re.Pattern[str], planted: str) -> None:
    """G16."""
    assert pattern.search(planted)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_pinned_by_hash(lock: str) -> None:
    """G7."""
    assert _unpinned((ROOT / lock).read_text()) == []


def test_a_package_without_a_hash_is_noticed() -> None:
    """G7."""
    assert _unpinned("good==1.0 \\\n    --hash=sha256:00\nbad==2.0\n") == ["bad==2.0"]
    assert _unpinned("loose>=2.0 \\\n    --hash=sha256:00\n") == ["loose>=2.0"]
    assert _unpinned("-e git+ssh://somewhere\n") == ["-e git+ssh://somewhere"]


def _unpinned(lock: str) -> list[str]:
    """The first line of each requirement that is not one version with at least one hash."""
    requirements = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n?", "", lock, flags=re.MULTILINE)).splitlines()
    return [
        line.split("  ")[0].strip()
        for line in requirements
        if line.strip() and not (_PIN.match(line) and "--hash=sha256:" in line)
    ]


def test_the_run_lock_is_part_of_the_development_lock() -> None:
    run, dev = (set(_PIN.findall((ROOT / f"requirements/{name}.txt").read_text())) for name in ("run", "dev"))
    assert run
    assert run <= dev


def test_no_code_opens_an_insecure_port() -> None:
    """C1: every listening gRPC port is mutually authenticated."""
    found = []
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"add_insecure_port", "insecure_channel"}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_only_settings_and_the_starters_of_processes_read_the_environment() -> None:
    # A package's __init__ may set what a native library reads when it is imported.
    owners = {"services/common/settings.py", "services/common/process.py"}
    found = []
    for path in (ROOT / "services").rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if (
            name in owners
            or name.startswith("services/standalone/")
            or path.name in {"config.py", "__init__.py"}
        ):
            continue
        if re.search(r"\bos\.(?:environ|getenv|putenv)\b", path.read_text(encoding="utf-8")):
            found.append(name)
    assert found == []


def test_no_module_of_the_services_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("services", "client")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}
