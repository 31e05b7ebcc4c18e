"""Generate the Python stubs beside their .proto files, or prove that the committed ones are current.

The stubs are committed so that a reader, a type checker and an installed wheel need no compiler. What
is committed must be exactly what the protos give: `--check` generates into a temporary folder and
compares. It must never write into `protos/` when checking.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


class GenerationFailed(Exception):
    """The compiler refused the protos; it has said why on standard error."""


def generate(out: Path) -> None:
    """Write the stubs of every .proto under `protos/` below `out`, in the same folders."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = (
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    )
    well_known = Path(str(files("grpc_tools") / "_proto"))
    bin_folder = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={well_known}",
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        *outputs,
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise GenerationFailed("protoc refused the protos")


def drift() -> list[str]:
    """The stubs that are missing, left over or different from what the protos give, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        generate(fresh_root)
        fresh = _contents(fresh_root)
    committed = _contents(PROTOS)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def _contents(root: Path) -> dict[str, bytes]:
    found = (path for pattern in STUB_PATTERNS for path in root.rglob(pattern))
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def main() -> int:
    """Run from the command line; the exit status is 1 when the check finds drift."""
    parser = argparse.ArgumentParser(description="Generate the Python stubs of protos/.")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    if not parser.parse_args().check:
        generate(PROTOS)
        return 0
    stale = drift()
    for name in stale:
        print(f"protos/{name} is not what its .proto gives: run `make protos` and commit the result")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
