"""The rows that whole tests prove, such as a process over a KMS that is silent: run, and counted."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from scripts.threats import rows

_TESTS = Path(__file__).resolve().parents[2]
_LIMIT_S = 900


@dataclass(frozen=True)
class Proof:
    """What the tests of a row gave: how many there are, how many failed, how many of them are twins."""

    row: str
    tests: int
    failed: int
    twins: int


def prove(wanted: list[str]) -> list[Proof]:
    """The proofs of these rows, by the tests that name them."""
    named = rows(_TESTS)
    places = {row: _tests_of(named.get(row, [])) for row in wanted}
    every = sorted({f"tests/{place}" for found in places.values() for place in found})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *every]
        subprocess.run(command, cwd=_TESTS.parent, capture_output=True, timeout=_LIMIT_S, check=False)
        failed, ran = _outcomes(report)
    proofs = []
    for row, found in places.items():
        keys = [_key(place) for place in found]
        tests = sum(ran.get(key, 0) for key in keys)
        bad = sum(failed.get(key, 0) for key in keys) + sum(key not in ran for key in keys)
        proofs.append(Proof(row, tests, bad, sum(_is_twin(place) for place in found)))
    return proofs


def _tests_of(places: list[str]) -> list[str]:
    """The tests that name a row; those of a whole file where only that names it."""
    tests = [place for place in places if "::test_" in place]
    if tests:
        return tests
    found = []
    for place in places:
        for node in ast.parse((_TESTS / place).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.append(f"{place}::{node.name}")
    return found


def _key(place: str) -> tuple[str, str]:
    path, _, name = place.partition("::")
    return path.removesuffix(".py").replace("/", "."), name


def _outcomes(report: Path) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    failed: dict[tuple[str, str], int] = {}
    ran: dict[tuple[str, str], int] = {}
    for case in ET.parse(report).iter("testcase"):
        key = case.get("classname", "").removeprefix("tests."), case.get("name", "").partition("[")[0]
        ran[key] = ran.get(key, 0) + 1
        if case.find("failure") is not None or case.find("error") is not None:
            failed[key] = failed.get(key, 0) + 1
    return failed, ran


def _is_twin(place: str) -> bool:
    path, _, name = place.partition("::")
    for node in ast.walk(ast.parse((_TESTS / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            # Such as "a foreign key is released once the account is not asked for".
            is_off = "_once_" in name.replace("at_once", "")
            return is_off or "twin" in f"{node.name} {ast.get_docstring(node) or ''}".lower()
    return False
