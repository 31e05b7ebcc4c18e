"""One attack on keys: what is tried, how often it succeeds with the control and without, how often it may."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """How an attack is run: where, how often, and whether the control is off."""

    folder: Path
    size: int
    twin: bool


@dataclass(frozen=True)
class Attack:
    """An attack by its row; `run` gives how often it succeeded."""

    row: str
    what: str
    # How often it is tried in the whole run, and in the tests.
    size: int
    small: int
    run: Callable[[Trial], Coroutine[Any, Any, float]]
    # How often it may succeed.
    bound: float = 0
