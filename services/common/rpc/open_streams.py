"""Ends a stream whose token has ended meanwhile: revoked, expired, or its account suspended or gone.

The edge looks at a token when a call begins; a stream may go on for an hour. So the tokens of open
streams are shown to the gateway every few seconds, and a stream that was not found good for
`BOUND_S` is ended, whether the gateway said no or could not be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from prometheus_client import Counter

from services.common.clock import Clock
from services.common.context import CallContext
from services.common.errors import SealcombError, Unauthenticated

PERIOD_S = 10.0
BOUND_S = 45.0
# What one question may name; more are asked in the next rounds first.
TOKENS_MAX = 1000
_log = structlog.get_logger("streams")
_ended = Counter("sealcomb_streams_ended_total", "Streams ended because their token had ended")

# The tokens among these that no longer let anybody in.
EndedTokens = Callable[[Collection[str]], Awaitable[Collection[str]]]


@dataclass(slots=True, eq=False)
class _Stream:
    token_id: str
    task: asyncio.Task[object]
    good_s: float
    ended: bool = False


class OpenStreams:
    """The streams of one server. Without `ended_tokens` none lasts longer than the bound."""

    def __init__(
        self,
        clock: Clock,
        ended_tokens: EndedTokens | None,
        *,
        period_s: float = PERIOD_S,
        bound_s: float = BOUND_S,
    ) -> None:
        self._clock = clock
        self._ended_tokens = ended_tokens
        self._period_s = period_s
        self._bound_s = bound_s
        self._streams: set[_Stream] = set()

    @contextmanager
    def watched(self, context: CallContext) -> Iterator[None]:
        """Watches over the current task for the block. Raises Unauthenticated where the token ends in it."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is served by a task")
        stream = _Stream(context.token_id, task, self._clock.monotonic_s())
        self._streams.add(stream)
        try:
            yield
        except asyncio.CancelledError:
            if not stream.ended:
                raise
            task.uncancel()
            raise Unauthenticated(
                "the token has ended while the call went on; use another", reason="TOKEN_ENDED"
            ) from None
        finally:
            self._streams.discard(stream)

    async def run(self) -> None:
        """Looks at the open streams until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            await self.look()

    async def look(self) -> None:
        """Asks once about the open streams' tokens, and ends those that are not good."""
        asked_s = self._clock.monotonic_s()
        waiting = sorted(self._streams, key=lambda stream: stream.good_s)
        tokens = list(dict.fromkeys(stream.token_id for stream in waiting))[:TOKENS_MAX]
        if tokens and self._ended_tokens is not None:
            try:
                ended = set(await self._ended_tokens(tokens))
            except SealcombError as error:
                _log.warning("tokens of open streams not looked at", reason=error.reason)
            else:
                self._judge(set(tokens), ended, asked_s)
        overdue_s = self._clock.monotonic_s() - self._bound_s
        for stream in list(self._streams):
            if stream.good_s < overdue_s:
                _end(stream)

    def _judge(self, asked: set[str], ended: set[str], asked_s: float) -> None:
        for stream in list(self._streams):
            if stream.token_id in ended:
                _end(stream)
            elif stream.token_id in asked:
                stream.good_s = max(stream.good_s, asked_s)


def _end(stream: _Stream) -> None:
    if not stream.ended:
        stream.ended = True
        _ended.inc()
        stream.task.cancel()
