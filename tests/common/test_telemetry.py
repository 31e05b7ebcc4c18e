"""A log line carries listed fields only, and of an exception its type and place only (B3, D25, G14)."""

from __future__ import annotations

import contextvars
import json
import os
import subprocess
import sys
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


def test_what_libraries_log_is_told_without_their_words() -> None:
    """B3, G14: asyncio and drivers put values and exception texts into theirs."""
    program = """
import asyncio, gc, logging
from services.common.telemetry import configure_logging
configure_logging("test")
logging.getLogger("driver").warning("value canary-1 refused")
async def fails():
    raise RuntimeError("canary-2")
async def main():
    asyncio.create_task(fails())
    await asyncio.sleep(0)
    gc.collect()
asyncio.run(main())
"""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["logger"] for line in lines} == {"driver", "asyncio"}
    assert any(line.get("exception_type") == "RuntimeError" for line in lines)
    assert "canary" not in done.stderr + done.stdout
