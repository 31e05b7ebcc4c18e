"""A log line carries listed fields only, and of an exception its type and place only (B3, D25, G14)."""

from __future__ import annotations

import contextvars
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from services.common import telemetry


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[Callable[[Any], None]], dict[str, Any]]]:
    """Runs one act with a configured logger and returns the one line that it logged."""

    def run(act: Callable[[Any], None]) -> dict[str, Any]:
        telemetry.configure_logging("vectorstore", "debug")
        act(structlog.get_logger("t"))
        (line,) = capsys.readouterr().err.splitlines()
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    yield run
    structlog.reset_defaults()


_Log = Callable[[Callable[[Any], None]], dict[str, Any]]


def test_fields_that_are_not_listed_are_dropped(log: _Log) -> None:
    line = log(lambda logger: logger.info("done", method="/a/b", text="canary text", vector=[1.0]))
    assert line["method"] == "/a/b"
    assert line["service"] == "vectorstore"
    assert "canary" not in json.dumps(line)


def test_the_twin_a_listed_field_does_carry_its_value(log: _Log) -> None:
    assert "canary" in json.dumps(log(lambda logger: logger.info("done", why="canary text")))


def test_an_exception_leaves_its_type_and_place_but_not_its_text(log: _Log) -> None:
    def fail(logger: Any) -> None:
        try:
            raise ValueError("canary text")
        except ValueError:
            logger.exception("failed")

    line = log(fail)
    assert line["exception_type"] == "ValueError"
    assert line["exception_at"].startswith("test_telemetry.py:")
    assert "canary" not in json.dumps(line)


def test_long_values_are_cut_and_line_ends_escaped(log: _Log) -> None:
    line = log(lambda logger: logger.info("done", why="x\n" * 10_000))
    assert len(line["why"]) <= 256


def test_a_line_within_a_call_says_which_call_it_is(log: _Log) -> None:
    def within(logger: Any) -> None:
        telemetry.begin_request("one-request")
        logger.info("done")

    assert contextvars.copy_context().run(lambda: log(within))["request_id"] == "one-request"
    assert "request_id" not in log(lambda logger: logger.info("done"))
