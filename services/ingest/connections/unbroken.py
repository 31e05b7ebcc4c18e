"""Work that is finished although whoever asked for it stops waiting.

Half of a refresh or of a disconnection is worse than none: what a provider gave or was told cannot be taken
back. Such work runs in a task of its own; its caller may leave, and the end of the process waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Unbroken:
    """The work in progress, by name: whoever asks for the same while it runs gets the same answer."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, name: Hashable, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What the work returns or raises. A caller that is cancelled leaves it running."""
        task: asyncio.Task[_T] | None = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._finished(name, done))
        return await asyncio.shield(task)

    async def drain(self, timeout_s: float) -> None:
        """Waits for what is in progress."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=timeout_s)

    def _finished(self, name: Hashable, task: asyncio.Task[Any]) -> None:
        del self._tasks[name]
        if not task.cancelled():
            task.exception()  # marks it as seen where the caller has left
