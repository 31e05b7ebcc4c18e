"""A channel that follows renewed certificates: gRPC fixes a channel's certificate when it is made.

The files are looked at when a call begins, at most every few seconds. When they have changed, later
calls go through a new channel. The old one stays as long as a server lets a connection live, so that
no stream on it is cut from this side, which would look like a cancellation to whoever reads it. Files
that are half renewed or cannot be read leave the channel as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from services.common.tls import TlsFiles, TlsMaterial

LOOK_EVERY_S = 5.0
# Longer than the age and the grace that a service's server gives a connection.
_OLD_S = 700.0


class RenewedChannel(grpc.aio.Channel):
    """Behaves as the channel that `make` gives for the present certificate."""

    def __init__(
        self,
        make: Callable[[TlsMaterial], grpc.aio.Channel],
        files: TlsFiles,
        monotonic_s: Callable[[], float],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._make = make
        self._files = files
        self._monotonic_s = monotonic_s
        self._look_every_s = look_every_s
        self._material = files.read()
        self._channel = make(self._material)
        self._looked_s = monotonic_s()
        self._old: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def current(self) -> grpc.aio.Channel:
        """The channel for the certificate that is there now."""
        now_s = self._monotonic_s()
        if now_s - self._looked_s < self._look_every_s:
            return self._channel
        self._looked_s = now_s
        try:
            material = self._files.read()
        except (OSError, ValueError):
            return self._channel
        if material != self._material:
            old, self._channel, self._material = self._channel, self._make(material), material
            closing = asyncio.get_running_loop().create_task(_close_later(old))
            self._old[closing] = old
            closing.add_done_callback(lambda done: self._old.pop(done, None))
        return self._channel

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Closes it, and those before it at once."""
        for closing, old in list(self._old.items()):
            closing.cancel()
            await old.close()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state of the present channel."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits for the present channel."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits for the present channel."""
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """A method of one request and one response."""
        return _Method(self, lambda channel: channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """A method of one request and a stream of responses."""
        return _Method(self, lambda channel: channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """A method of a stream of requests and one response."""
        return _Method(self, lambda channel: channel.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """A method of streams both ways."""
        return _Method(self, lambda channel: channel.stream_stream(*args, **options))


async def _close_later(channel: grpc.aio.Channel) -> None:
    await asyncio.sleep(_OLD_S)
    await channel.close()


class _Method:
    """A method of whichever channel is the present one."""

    def __init__(self, renewed: RenewedChannel, bind: Callable[[grpc.aio.Channel], Any]) -> None:
        self._renewed = renewed
        self._bind = bind
        self._channel: grpc.aio.Channel | None = None
        self._bound: Any = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        channel = self._renewed.current()
        if channel is not self._channel:
            self._channel, self._bound = channel, self._bind(channel)
        return self._bound(*args, **options)
