"""Releases, wrapping and unwrapping at each KMS.

OpenBao and SoftHSM are the real ones, on loopback; AWS is the tests' fake, so its rows are the cost on
this side of the wire, to which the round trip to AWS adds itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.keys.table import Row, times
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import Caller, acting_as
from services.common.datakeys import DataKeys
from services.common.sealing import DataKey
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.aws_client import AwsClient
from services.keyvault.kms.aws_root import AwsRootKms
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.guard import GuardedKms
from services.keyvault.kms.protocol import Kms
from services.keyvault.records import Wrapping
from tests.keyvault.kms.aws_fake import OUR_ACCESS_KEY, AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, REGION
from tests.keyvault.kms.peers import Bao, new_token, soft_hsm
from tests.keyvault.rig import Rig

_CALLS = 400
_CACHED = 20_000
_UNLIMITED = 1e9


async def rows() -> list[Row]:
    """The rows of every KMS."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        async with _providers(Path(folder)) as providers:
            for kms in providers:
                found += await _of(kms, Path(folder))
    return found


async def _of(kms: Kms, folder: Path) -> list[Row]:
    key = await kms.new_key(ids.new_id(), 1)
    wrappings = [Wrapping(key.account, ids.new_id(), "collection", ids.new_id()) for _ in range(_CALLS)]
    wrapped: list[bytes] = []

    async def wrap(number: int) -> None:
        wrapped.append(await kms.wrap(key, wrappings[number], bytes(range(32))))

    async def unwrap(number: int) -> None:
        await kms.unwrap(key, wrappings[number], wrapped[number])

    found = [
        times(f"{kms.provider}: wrap", await _timed(wrap, _CALLS)),
        times(f"{kms.provider}: unwrap", await _timed(unwrap, _CALLS)),
    ]
    (folder / kms.provider).mkdir()
    rig = Rig(folder / kms.provider / "keyvault.db", kms)
    asker = rig.asker(await rig.account())
    resource = ids.new_id()

    async def release(_number: int) -> None:
        await rig.releases.release(asker, resource, "collection")

    class Source:
        """Keyvault without a network."""

        async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
            """The released key."""
            return await rig.releases.release(asker, resource, purpose, key_id)

    held = DataKeys(Source(), SystemClock())

    async def cached(_number: int) -> None:
        await held.current(resource, "collection")

    found.append(times(f"{kms.provider}: release, uncached, recorded", await _timed(release, _CALLS)))
    with acting_as(Caller(asker.context, "context")):
        found.append(times(f"{kms.provider}: release, cached in a service", await _timed(cached, _CACHED)))
    rig.close()
    return found


async def _timed(work: Callable[[int], Awaitable[None]], count: int) -> list[float]:
    seconds = []
    for number in range(count):
        started = time.perf_counter()
        await work(number)
        seconds.append(time.perf_counter() - started)
    return seconds


@asynccontextmanager
async def _providers(folder: Path) -> AsyncIterator[list[Kms]]:
    os.environ.update(
        AWS_ACCESS_KEY_ID=OUR_ACCESS_KEY, AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true"
    )
    soft_hsm(folder)
    token, bao, fake = new_token(folder), Bao(folder), AwsFake()
    client = AwsClient(REGION, ACCOUNT, SystemClock(), endpoint_url=fake.url)
    remote: list[Kms] = [
        AwsKms(client),
        AwsRootKms(client, fake.states.add_key().arn, SystemClock()),
        bao.kms(),
        token.kms(),
    ]
    clock = SystemClock()
    providers: list[Kms] = [FileKms(os.urandom(32))]
    providers += [GuardedKms(kms, clock, calls_per_second=_UNLIMITED) for kms in remote]
    try:
        yield providers
    finally:
        for kms in providers:
            await kms.close()
        bao.stop()
        fake.stop()
