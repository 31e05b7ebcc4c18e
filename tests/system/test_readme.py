"""The commands of README, docs/http.md and docs/admin.md, run as a reader would: they print what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.installation import Installation

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(console|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "@@ next command @@"


@dataclass(frozen=True)
class Step:
    """A command and what it should print; "..." stands for anything."""

    command: str
    expected: str


def blocks(kind: str, document: str = "README.md") -> list[str]:
    """A document's fenced blocks of a kind."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [body for found, body in _FENCE.findall(text) if found == kind]


def steps(block: str) -> list[Step]:
    """The commands of a console block."""
    found: list[Step] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append(Step(line[2:].rstrip("\n"), ""))
        else:
            found[-1] = Step(found[-1].command, found[-1].expected + line)
    return found


def matches(expected: str, printed: str) -> bool:
    """Whether the text is what was expected, "..." standing for anything and white space for white space."""
    parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
    pattern = r"\s*" + r".*".join(part.replace(r"\ ", r"\s+") for part in parts) + r"\s*"
    return re.fullmatch(pattern, " ".join(printed.split()), re.DOTALL) is not None


@pytest.fixture(scope="module")
def checkout(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout in which `make run` runs."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (folder / "data").symlink_to(installation.data)
    (folder / "data.keys").symlink_to(installation.keys)
    return folder


def run(installation: Installation, checkout: Path, command: list[str]) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(checkout)}
    done = subprocess.run(
        command,
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=90,
        check=False,
    )
    return done.stdout.decode()


def test_the_readme_has_commands_for_all_three_ways() -> None:
    commands = [step.command for block in blocks("console") for step in steps(block)]
    assert any(command.startswith("sealcomb ") for command in commands)
    assert any(command.startswith("call ") for command in commands)
    assert len(blocks("python")) == len(blocks("text")) == 1


@pytest.mark.parametrize("document", ["README.md", "docs/http.md", "docs/admin.md"])
def test_the_console_commands_print_what_is_shown(
    installation: Installation, checkout: Path, document: str
) -> None:
    todo = [step for block in blocks("console", document) for step in steps(block)]
    script = "shopt -s expand_aliases\n"
    for step in todo:
        command = step.command.replace("127.0.0.1:8443", f"127.0.0.1:{installation.edge_port}")
        script += command.replace("127.0.0.1:8444", f"127.0.0.1:{installation.http_port}") + "\n"
        script += f"echo '{_MARK}'\n"
    outputs = run(installation, checkout, ["bash", "-c", script]).split(_MARK + "\n")
    wrong = [
        f"$ {step.command}\nexpected:\n{step.expected}\nprinted:\n{printed}"
        for step, printed in zip(todo, outputs, strict=False)
        if not matches(step.expected, printed)
    ]
    assert not wrong, "\n\n".join(wrong)
    assert len(outputs) == len(todo) + 1


def test_the_python_example_prints_what_the_readme_shows(installation: Installation, checkout: Path) -> None:
    printed = run(installation, checkout, [sys.executable, "-c", blocks("python")[0]])
    assert matches(blocks("text")[0], printed), printed


def test_a_wrong_output_is_noticed() -> None:
    assert matches("a ...\nc", "a b\n  c\n")
    assert not matches("a ...\nc", "a b\nd\n")
    assert not matches("", "anything")
