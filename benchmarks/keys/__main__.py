"""Measures what keys cost and prints one table."""

from __future__ import annotations

import asyncio

import uvloop

from benchmarks.keys import lifecycle, outage, providers, rewrap, sealing
from benchmarks.keys.table import show

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(providers.rows()) + runner.run(outage.rows()) + runner.run(rewrap.rows())
    show(found + sealing.rows() + lifecycle.rows())
