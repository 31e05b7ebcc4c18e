"""The table of `make attack-ingest` names tests that are there, and every row of the threats to ingest."""

from __future__ import annotations

import ast
import re

from tests.attacks.ingest.__main__ import Line, show
from tests.attacks.ingest.proved import PROVED, ROOT, Outcome, Proved, _outcome

# Measured by themselves, not by tests.
_MEASURED = {1, 2, 14, 15, 16, 25}


def test_every_place_is_a_test() -> None:
    for row in PROVED:
        for place in (*row.tests, *row.twins):
            path, _, name = place.partition("::")
            tree = ast.parse((ROOT / "tests" / path).read_text())
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
            assert not name or name in names, place


def test_every_row_is_there_with_a_twin() -> None:
    """E1 to E29."""
    numbers = set(_MEASURED)
    for row in PROVED:
        first, *last = map(int, re.findall(r"\d+", row.row))
        numbers |= set(range(first, (last or [first])[0] + 1))
        assert row.tests
        assert row.twins
    assert numbers == set(range(1, 30))


def test_a_test_that_fails_and_a_twin_that_stays_green_are_counted() -> None:
    row = Proved("E1", "x", ("a.py::test_b", "c.py"), ("c.py::test_twin",))
    cases = [("tests/a.py::test_b[1]", ""), ("tests/a.py::test_b[2]", "late"), ("tests/a.py::test_bc", "")]
    cases += [("tests/c.py::test_d", ""), ("tests/c.py::test_twin", "green")]
    failures = ("tests/a.py::test_b[2]\nlate", "tests/c.py::test_twin\ngreen")
    assert _outcome(row, cases) == Outcome(3, 2, 1, 0, failures)
    line = Line("E1", "x", "2 of 3 refused", "all", "0 of 1 go through", held=False)
    assert "FAILS" in show([line])
