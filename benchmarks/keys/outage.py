"""A KMS that was silent and is back: how long until the first release, for a caller that keeps asking."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from benchmarks.keys.table import Row, bounded, times
from services.common import ids
from services.common.clock import SystemClock
from services.common.errors import SealcombError
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.aws_client import AwsClient
from services.keyvault.kms.guard import GuardedKms
from tests.keyvault.kms.aws_fake import OUR_ACCESS_KEY, AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, REGION
from tests.keyvault.rig import Rig

_TRIALS = 20
# Longer than it takes the guard to leave a silent KMS alone.
_SILENT_S = 1.0
_EVERY_S = 0.02
_BOUND_S = 1.0


async def rows() -> list[Row]:
    """The recoveries."""
    os.environ.update(
        AWS_ACCESS_KEY_ID=OUR_ACCESS_KEY, AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true"
    )
    fake = AwsFake()
    client = AwsClient(REGION, ACCOUNT, SystemClock(), endpoint_url=fake.url)
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder) / "keyvault.db", GuardedKms(AwsKms(client), SystemClock(), 5.0, 1e6))
        account, resource = await rig.account(), ids.new_id()

        async def is_released() -> bool:
            try:
                await rig.releases.release(rig.asker(account), resource, "collection")
            except SealcombError:
                await asyncio.sleep(_EVERY_S)
                return False
            return True

        assert await is_released()
        found = []
        for _ in range(_TRIALS):
            fake.stop()
            until_s, was_refused = time.perf_counter() + _SILENT_S, False
            while time.perf_counter() < until_s:
                was_refused = not await is_released() or was_refused
            if not was_refused:
                raise RuntimeError("nothing was refused while the KMS was away")
            fake.start()
            back_s = time.perf_counter()
            while not await is_released():
                pass
            found.append(time.perf_counter() - back_s)
        rig.close()
    fake.stop()
    await client.close()
    row = times("aws: first release after the KMS is back", found)
    return [bounded(row, max(found), _BOUND_S, "s")]
