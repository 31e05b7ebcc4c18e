"""List the rows of the threat catalogue that tests say they prove, with the tests that name them.

A test names a row in its docstring, its name or its module's docstring, as letters and a number
("F4", "AS2"). The catalogue itself is kept elsewhere, so this lists what is
claimed; it cannot say what is missing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ROW = re.compile(r"(?<![A-Za-z0-9_])((?:AS|[A-G])[0-9]{1,2})(?![A-Za-z0-9_])")
_ROW_IN_NAME = re.compile(r"_((?:AS|[A-G])[0-9]{1,2})(?=_|$)")


def rows(tests: Path) -> dict[str, list[str]]:
    """Row id to the sorted places ("folder/test_x.py::test_name") that name it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(tests.rglob("test_*.py")):
        for place, row in _named(path, str(path.relative_to(tests))):
            found[row].add(place)
    return {row: sorted(found[row]) for row in sorted(found, key=_order)}


def _order(row: str) -> tuple[str, int]:
    letters = row.rstrip("0123456789")
    return letters, int(row.removeprefix(letters))


def _named(path: Path, label: str) -> Iterator[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for row in _ROW.findall(ast.get_docstring(tree) or ""):
        yield label, row
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            ids = _ROW.findall(ast.get_docstring(node) or "") + _ROW_IN_NAME.findall(node.name)
            for row in ids:
                yield f"{label}::{node.name}", row


def main() -> int:
    """Print the list."""
    found = rows(ROOT / "tests")
    for row, places in found.items():
        print(f"{row:4} {places[0]}")
        for place in places[1:]:
            print(f"     {place}")
    print(f"{len(found)} rows named by tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
