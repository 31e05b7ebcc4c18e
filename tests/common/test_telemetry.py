"""A log line carries listed fields only, and of an exception its type and place only (B3, D25, G14)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog

from services.common import telemetry


def _line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    parsed: dict[str, Any] = json.loads(lines[0])
    return parsed


@pytest.fixture(autouse=True)
def _configured(capsys: pytest.CaptureFixture[str]) -> Any:
    telemetry.configure_logging("vectorstore", "debug")
    yield
    structlog.reset_defaults()


def test_fields_that_are_not_listed_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.get_logger("t").info("done", method="/a/b", text="canary text", vector=[1.0])
    line = _line(capsys)
    assert line["method"] == "/a/b"
    assert line["service"] == "vectorstore"
    assert "canary" not in json.dumps(line)


def test_the_twin_a_listed_field_does_carry_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.get_logger("t").info("done", why="canary text")
    assert "canary" in json.dumps(_line(capsys))


def test_an_exception_leaves_its_type_and_place_but_not_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("canary text")
    except ValueError:
        structlog.get_logger("t").exception("failed")
    line = _line(capsys)
    assert line["exception_type"] == "ValueError"
    assert line["exception_at"].startswith("test_telemetry.py:")
    assert "canary" not in json.dumps(line)


def test_long_values_are_cut_and_line_ends_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.get_logger("t").info("done", why="x\n" * 10_000)
    line = _line(capsys)
    assert len(line["why"]) <= 256
