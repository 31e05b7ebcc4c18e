"""Shared buckets in Valkey: one atomic script each for leasing, for giving back, and for being counted.

A bucket is a hash of its level and of the moment of that level, by the store's own clock, so that no
process's clock can refill it; a store clock that goes back refills nothing. What the store holds are ids and
numbers. A key goes when its bucket has been full for a minute. Whatever goes wrong is StoreLost.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import valkey.asyncio
from valkey.asyncio.connection import SSLConnection
from valkey.exceptions import ValkeyError

from services.gateway.buckets import Limits
from services.gateway.portions.lease import Lease, StoreLost

_PREFIX = "sealcomb:limits:"
_REPLICAS = "sealcomb:policies"
# A policy process that said nothing for this long is not counted.
_SILENT_S = 5.0
_TIMEOUT_S = 0.25
# In so many parts, each of which lets the answer in first if it is there: while this process itself stood
# still the store was not late.
_LOOKS = 5
# A connection by itself waits for longer, so that this alone says what is late.
_CONNECTION_TIMEOUT_S = 5.0
_CONNECTIONS_MAX = 16

# Takes what is owed, if need be below nothing. Grants what was asked for at once if it is there, and more
# ahead only out of what is plenty. Gives the amount granted, the level left, and how long until the first of
# what was refused is there.
_LEASE = """
local rate, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local first, must, ahead = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local owed = tonumber(ARGV[6])
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(held[1]) or capacity, tonumber(held[2]) or now
if now > at then level = level + (now - at) * rate; at = now end
if level > capacity then level = capacity end
level = level - owed
local granted = 0
if level + 0.000001 >= must then
  granted = math.min(level, must + math.min(ahead, math.floor((level - must) / 8)))
elseif level + 0.000001 >= first then
  granted = math.min(level, math.floor((level + 0.000001) / first) * first)
end
level = level - granted
redis.call('HSET', KEYS[1], 'level', string.format('%.6f', level), 'at', string.format('%.6f', at))
redis.call('EXPIRE', KEYS[1], math.ceil((capacity - level) / rate) + 60)
local wait = 0
if granted < must then wait = math.max(0, (first - level) / rate) end
return {string.format('%.6f', granted), string.format('%.6f', level), string.format('%.6f', wait)}
"""

# What was given back to a bucket that is gone would be more than full.
_GIVE_BACK = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HINCRBYFLOAT', KEYS[1], 'level', ARGV[1])
end
return 0
"""

_BEAT = """
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', t[1] - ARGV[2])
redis.call('EXPIRE', KEYS[1], 3600)
return redis.call('ZCARD', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the store is and as whom it is used; a password only with a user or alone, from a file."""

    host: str
    port: int
    tls: bool
    database: int = 0
    user: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port})"


class PortionStore:
    """The buckets, for every policy process of an installation."""

    def __init__(self, address: Address) -> None:
        self._client = valkey.asyncio.Valkey(
            connection_pool=valkey.asyncio.BlockingConnectionPool(
                max_connections=_CONNECTIONS_MAX, timeout=1, **_options(address)
            )
        )
        self._lease = self._client.register_script(_LEASE)
        self._give_back = self._client.register_script(_GIVE_BACK)
        self._beat = self._client.register_script(_BEAT)

    async def lease(
        self, name: str, limits: Limits, first: float, must: float, ahead: float, owed: float = 0.0
    ) -> Lease:
        """Leases `must`, of which one call needs `first`, and up to `ahead` more, once `owed` is paid.

        Raises StoreLost.
        """
        arguments = [limits.calls_per_second, limits.burst, first, must, ahead, owed]
        answer = await _in_time(self._lease(keys=[_PREFIX + name], args=arguments))
        try:
            return Lease(*(float(value) for value in answer))
        except (TypeError, ValueError):
            raise StoreLost from None

    async def give_back(self, name: str, amount: float) -> None:
        """Gives back what was leased and is not used. Raises StoreLost."""
        await _in_time(self._give_back(keys=[_PREFIX + name], args=[amount]))

    async def beat(self, replica: str) -> int:
        """Says that a policy process is there; how many are. Raises StoreLost."""
        try:
            return int(await _in_time(self._beat(keys=[_REPLICAS], args=[replica, _SILENT_S])))
        except (TypeError, ValueError) as error:
            raise StoreLost from error

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose(close_connection_pool=True)


async def _in_time(work: Any) -> Any:
    answer = asyncio.ensure_future(work)
    answer.add_done_callback(_looked_at)
    try:
        for _ in range(_LOOKS):
            done, _pending = await asyncio.wait({answer}, timeout=_TIMEOUT_S / _LOOKS)
            if done:
                return answer.result()
        raise StoreLost
    except (ValkeyError, OSError) as error:
        raise StoreLost from error
    finally:
        answer.cancel()


def _looked_at(answer: asyncio.Future[Any]) -> None:
    # Nobody waits for how one that was late ends.
    if not answer.cancelled():
        answer.exception()


def _options(address: Address) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": address.database,
        "username": address.user,
        "password": address.password,
        "socket_timeout": _CONNECTION_TIMEOUT_S,
        "socket_connect_timeout": _CONNECTION_TIMEOUT_S,
        "socket_keepalive": True,
        "decode_responses": True,
    }
    if address.tls:
        options |= {
            "connection_class": SSLConnection,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            "ssl_ca_certs": str(address.ca_file) if address.ca_file else None,
            "ssl_certfile": str(address.cert_file) if address.cert_file else None,
            "ssl_keyfile": str(address.key_file) if address.key_file else None,
        }
    return options
