"""Puts together the root folder of an image: the installed service, its Python, and what those load.

Runs in the build with the system's Python. What is not copied is not there: no shell, no pip, no
compiler. Libraries are found by asking the loader (`ldd`) of every binary that is copied.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

_HOME = Path("/opt/sealcomb")
_SERVICES = ("gateway", "keyvault", "vectorstore", "ingest")
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Parts of the standard library that run nothing of ours.
_NOT_NEEDED = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "config-*",
    "__pycache__",
)
_BUILDERS = (
    "pip",
    "setuptools",
    "wheel",
    "pybind11",
    "pkg_resources",
    "_distutils_hack",
    "distutils-precedence.pth",
)
_ALSO = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/openssl.cnf", "/usr/share/zoneinfo")


def build(service: str, root: Path) -> None:
    """Fills the root folder for a service."""
    site = _HOME / "lib" / _PYTHON / "site-packages"
    _uninstall_unlocked(service)
    _drop(site, *_BUILDERS, *(f"{name}-*" for name in _BUILDERS))
    # Each image carries its own service's code alone (and what all of them share).
    for other in {*_SERVICES, "standalone"} - {service}:
        _drop(site / "services", other)
    _drop(_HOME / "bin", "pip*", "activate*", "Activate*")
    (_HOME / "bin" / "service").symlink_to(f"sealcomb-{service}")

    _copy(_HOME, root)
    _copy(Path("/usr/lib") / _PYTHON, root, ignore=shutil.ignore_patterns(*_NOT_NEEDED))
    _copy(Path("/usr/bin") / _PYTHON, root)
    (root / "usr/bin/python3").symlink_to(_PYTHON)
    for path in map(Path, _ALSO):
        if path.exists():
            _copy(path, root)
    libraries = sorted(_libraries(root))
    for path in libraries:
        _copy(path, root)
    listed = root / "usr/share/sealcomb/debian-packages.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text(
        "".join(f"{line}\n" for line in _debian_packages([Path("/usr/bin") / _PYTHON, *libraries]))
    )
    compileall.compile_dir(root / "opt", quiet=2, workers=1)
    compileall.compile_dir(root / "usr/lib" / _PYTHON, quiet=2, workers=1)

    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("sealcomb:x:10001:10001::/tmp:/\n")
    (root / "etc/group").write_text("sealcomb:x:10001:\n")
    for name, mode in (
        ("tmp", 0o1777),
        ("run", 0o755),
        ("proc", 0o555),
        ("dev", 0o755),
        ("var/lib/sealcomb", 0o755),
    ):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def _uninstall_unlocked(service: str) -> None:
    """Removes packages that were there to build others, and that the service's lock does not have."""
    lock = Path("requirements", f"image-{service}.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)) | {"sealcomb", "pip"}
    pip = [str(_HOME / "bin" / "pip"), "--disable-pip-version-check"]
    listed = subprocess.run([*pip, "list", "--format", "freeze"], capture_output=True, text=True, check=True)
    names = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in listed.stdout.splitlines()}
    if names - locked:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *sorted(names - locked)], check=True)


def _drop(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _copy(path: Path, root: Path, ignore: object = None) -> None:
    target = root / os.path.relpath(path, "/")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True, ignore=ignore)  # type: ignore[arg-type]
    else:
        shutil.copy2(path.resolve(), target)


def _libraries(root: Path) -> set[Path]:
    """Shared libraries of the system that the binaries in the root folder load, and the loader itself."""
    found: set[Path] = set()
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file() or not _is_elf(path):
            continue
        output = subprocess.run(
            ["/usr/bin/ldd", str(path)], capture_output=True, text=True, check=False
        ).stdout
        for match in re.finditer(r"(?:=> )?(/\S+) \(0x", output):
            library = Path(match[1])
            if not library.is_relative_to(root) and not library.is_relative_to(_HOME):
                found.add(library)
    return found


def _debian_packages(paths: list[Path]) -> list[str]:
    """Name and version of the system's packages that these files are of."""
    known = {str(path) for path in paths} | {str(path.resolve()) for path in paths}
    # Some packages still name /lib what is /usr/lib by now.
    known |= {name.removeprefix("/usr") for name in known}
    found = subprocess.run(["/usr/bin/dpkg", "--search", *known], capture_output=True, text=True, check=False)
    names = {line.split(":")[0] for line in found.stdout.splitlines() if not line.startswith("diversion ")}
    names |= {f"{_PYTHON}-minimal", f"lib{_PYTHON}-minimal", f"lib{_PYTHON}-stdlib"}
    shown = ["/usr/bin/dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", *sorted(names)]
    return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", choices=_SERVICES, required=True)
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    build(arguments.service, arguments.into)
