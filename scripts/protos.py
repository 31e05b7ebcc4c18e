"""Generate what is made from the .proto files, or prove that what is committed is current: stubs, OpenAPI.

The stubs are committed so that a reader, a type checker and an installed wheel need no compiler. What
is committed must be exactly what the protos give: `--check` generates into a temporary folder and
compares. It must never write when checking. `--lint` runs buf, which finds Google's
annotations in the installed package and needs no registry.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import google.api
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
# google/api/annotations.proto, which binds methods to HTTP, comes with the package of its stubs.
GOOGLE = Path(google.api.__path__[0]).parents[1]
_ANNOTATIONS = ("google/api/annotations.proto", "google/api/http.proto")
STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


class GenerationFailed(Exception):
    """The compiler refused the protos; it has said why on standard error."""


def generate(out: Path) -> None:
    """Write the stubs of every .proto under `protos/` below `out`, in the same folders."""
    bin_folder = Path(sys.executable).parent
    _protoc(
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    )


def described() -> FileDescriptorSet:
    """Every file under `protos/` with what it imports, the comments included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "all.binpb"
        _protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={out}")
        return FileDescriptorSet.FromString(out.read_bytes())


def lint() -> int:
    """The exit status of `buf lint` over the protos and what they import."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        shutil.copy(ROOT / "buf.yaml", workspace)
        shutil.copytree(PROTOS, workspace / "protos", ignore=shutil.ignore_patterns("*.py", "*.pyi"))
        for name in _ANNOTATIONS:
            (workspace / "google-api" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(GOOGLE / name, workspace / "google-api" / name)
        command = [str(Path(sys.executable).parent / "buf"), "lint"]
        return subprocess.run(command, cwd=workspace, check=False).returncode


def _protoc(*arguments: str) -> None:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = Path(str(files("grpc_tools") / "_proto"))
    paths = (f"--proto_path={folder}" for folder in (PROTOS, well_known, GOOGLE))
    if protoc.main(["protoc", *paths, *arguments, *sources]) != 0:
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
    parser.add_argument("--lint", action="store_true", help="run buf's lint instead")
    arguments = parser.parse_args()
    if arguments.lint:
        return lint()
    if not arguments.check:
        generate(PROTOS)
        return _openapi()
    stale = drift()
    for name in stale:
        print(f"protos/{name} is not what its .proto gives: run `make protos` and commit the result")
    return 1 if stale else _openapi("--check")


def _openapi(*arguments: str) -> int:
    """Writes or checks what else is made from the protos, with the stubs as they are now."""
    command = [sys.executable, "-m", "scripts.openapi", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
