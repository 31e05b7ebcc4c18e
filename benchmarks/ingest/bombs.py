"""`make attack-bombs`: what documents that unpack, expand, nest or loop get, and what they cost.

Each goes through the real sandbox. Memory is the highest that the child held, looked at every few
milliseconds; the bounds are those of the default settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil

from services.common.errors import SealcombError
from services.ingest.extract.process import ExtractionLimits, Extractor
from tests.ingest.samples.bombs import BOMBS

_MIB = 1024 * 1024
_LOOK_S = 0.005


async def _watch(highest: list[int]) -> None:
    """Keeps the highest resident memory of any child."""
    while True:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                highest[0] = max(highest[0], child.memory_info().rss)
        await asyncio.sleep(_LOOK_S)


async def _run() -> bool:
    limits = ExtractionLimits()
    bound = f"{limits.memory_bytes_max // _MIB} MiB, {limits.wall_s_max:.0f} s"
    print(f"{'bomb':26}{'its bytes':>12}  {'answer':24}{'seconds':>8}{'MiB':>7}  bound")
    within = True
    for name, (form, make) in BOMBS.items():
        content = make()
        extractor = Extractor(limits, workers=1)
        await extractor.start()
        highest = [0]
        watching = asyncio.create_task(_watch(highest))
        started = time.perf_counter()
        try:
            pages = (await extractor.extract(form, content)).pages
            answer = f"read: {sum(len(page.text) for page in pages)} characters"
        except SealcombError as error:
            answer = error.reason
        seconds = time.perf_counter() - started
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await extractor.close()
        within = within and highest[0] <= limits.memory_bytes_max and seconds <= limits.wall_s_max
        print(f"{name:26}{len(content):>12,}  {answer:24}{seconds:8.2f}{highest[0] / _MIB:7.0f}  {bound}")
    return within


def main() -> int:
    """Prints the table; 1 if something was beyond its bound."""
    return 0 if asyncio.run(_run()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
