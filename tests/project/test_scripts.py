"""The scripts behind `make check` and `make threats`: what they let through and what they stop."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import audit, licences, threats


def test_a_licence_that_nobody_allowed_is_refused() -> None:
    packages = [
        {"Name": "good", "License": "MIT OR Apache-2.0"},
        {"Name": "viral", "License": "AGPL-3.0"},
        {"Name": "half", "License": "MIT AND AGPL-3.0"},
        {"Name": "silent", "License": "UNKNOWN"},
        {"Name": "hnswlib", "License": "UNKNOWN"},
        {"Name": "psycopg", "License": "LGPL-3.0-only"},
        {"Name": "psycopg2", "License": "LGPL-3.0-only"},
    ]
    assert [line.split(":")[0] for line in licences.refusals(packages)] == [
        "viral",
        "half",
        "silent",
        "psycopg2",
    ]


def test_an_audit_that_looked_nothing_up_is_not_a_clean_one() -> None:
    """G7: the tool itself passes here, so its exit status is not believed."""
    report = json.dumps({"dependencies": [{"name": "a", "skip_reason": "not found"}]})
    assert audit.read(report) == audit.Findings(0, ("a",), ())
    for broken in ("", "{}", "null", json.dumps({"dependencies": []})):
        assert audit.read(broken).skipped == ("everything",)


def test_a_vulnerable_package_is_named() -> None:
    """G7."""
    rows = [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "2", "vulns": [{"id": "X-1"}]},
    ]
    assert audit.read(json.dumps({"dependencies": rows})) == audit.Findings(2, (), ("b 2: X-1",))


def test_rows_are_read_from_docstrings_and_names(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        '"""About Z9, which is no row."""\n'
        "def test_reordered_records_are_refused_F4():\n    pass\n"
        'class TestIt:\n    def test_two(self):\n        """F10, F4 and AS2; not UTF8 or SHA256."""\n'
    )
    assert threats.rows(tmp_path) == {
        "AS2": ["test_x.py::test_two"],
        "F4": ["test_x.py::test_reordered_records_are_refused_F4", "test_x.py::test_two"],
        "F10": ["test_x.py::test_two"],
    }
