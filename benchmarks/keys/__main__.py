"""Measures what keys cost and prints one table; ends with 1 where a bound is missed."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from benchmarks.keys import lifecycle, outage, providers, rewrap, sealing
from benchmarks.keys.table import missed, show

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(providers.rows()) + runner.run(outage.rows()) + runner.run(rewrap.rows())
    found += sealing.rows() + lifecycle.rows()
    show(found)
    sys.exit(int(missed(found) > 0))
