"""Ingest as a process that is made to be killed: forked anew for each life, so that a life begins quickly.

Arguments: the settings as JSON, and a JSON file with the things of the source, `{id: [version, text]}`.
For each line on standard input it begins a life and prints `pid port` once it serves.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from services.common.telemetry import configure_logging
from services.ingest.config import IngestSettings
from services.ingest.main import serve
from services.ingest.sources.contract import Item
from tests.ingest.hash_embedder import HashEmbedder
from tests.ingest.memory_source import MemorySourceType, Thing


class FileSourceType(MemorySourceType):
    """The twin of a source whose things stand in a file, so that all lives see the same."""

    path = Path()

    def open(self, settings: Any, credential: Any, egress: Any) -> Any:
        """The source as the file says now."""
        self.things = {
            id_: Thing(Item(id_, f"{id_}.txt", version, f"https://memory.example/{id_}"), text.encode())
            for id_, (version, text) in json.loads(self.path.read_text()).items()
        }
        return super().open(settings, credential, egress)


async def _live(settings: IngestSettings, source: FileSourceType) -> None:
    def ready(port: int) -> None:
        print(os.getpid(), port, flush=True)

    async def pause(_item: Item) -> None:
        await asyncio.sleep(0.01)

    source.before_fetch = pause
    await serve(settings, HashEmbedder(), asyncio.Event(), ready, [source])


def main() -> None:
    """Begins lives until standard input ends."""
    configure_logging("ingest")
    settings = IngestSettings(**json.loads(sys.argv[1]))
    FileSourceType.path = Path(sys.argv[2])
    for _line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(_live(settings, FileSourceType()))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
