"""`make bench`: what docs/performance.md reports, one table after the other.

`BENCH_FOLDER=<folder in the BEIR shape>` adds retrieval quality over that folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.system.installation import running


def main() -> int:
    """Runs each benchmark in a process of its own, so that none warms another; gives the worst exit code."""
    codes = []
    for module in ("benchmarks.wire", "benchmarks.edge"):
        print(f"== {module}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", module], check=False).returncode)
    folder = os.environ.get("BENCH_FOLDER")
    if folder is None:
        print("== benchmarks.retrieval: set BENCH_FOLDER to a folder in the BEIR shape")
        return max(codes)
    print("== benchmarks.retrieval", flush=True)
    with tempfile.TemporaryDirectory() as home, running(Path(home)) as installation:
        connection = replace(installation.connection, token=installation.new_account().connection.token)
        values = {
            "SEALCOMB_ENDPOINT": connection.endpoint,
            "SEALCOMB_CA_FILE": str(connection.ca_file),
            "SEALCOMB_TOKEN": connection.token,
        }
        command = [sys.executable, "-m", "benchmarks.retrieval", str(Path(folder).resolve())]
        codes.append(subprocess.run(command, check=False, env={**os.environ, **values}).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
