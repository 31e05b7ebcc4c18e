"""The layering of pyproject.toml holds, and each of its rules notices a module that breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# One offending module for each rule, and words from that rule's name.
_PLANTED = {
    "services/gateway/planted_a.py": ("import services.keyvault\n", "The services never import one another"),
    "services/common/planted_b.py": ("import services.ingest\n", "The services never import one another"),
    "client/sealcomb_client/planted_c.py": ("import services.common.ids\n", "The SDK stands alone"),
    "services/common/planted_d.py": ("import sealcomb_client\n", "The services never use the SDK"),
    "services/keyvault/config.py": ("import services.keyvault.store\n", "Inside keyvault"),
    "services/vectorstore/planted_e.py": ("import sqlalchemy\n", "A database is reached only by a store"),
    "services/vectorstore/planted_f.py": ("import hnswlib\n", "hnswlib only in the index"),
    "services/vectorstore/planted_g.py": ("import cryptography\n", "Cryptography only in"),
    "services/ingest/planted_h.py": ("import kreuzberg\n", "Parsers of untrusted documents"),
    "services/ingest/planted_i.py": ("import grpc\n", "grpc and the stubs only in"),
    "services/ingest/planted_j.py": (
        "import services.common.rpc.status\n",
        "What knows grpc is used only by",
    ),
    "services/common/planted_k.py": ("import services.common.planted_l\n", "No cycles"),
    "services/common/planted_l.py": ("import services.common.planted_k\n", "No cycles"),
}


def _lint(root: Path) -> str:
    paths = os.pathsep.join(str(root / folder) for folder in (".", "client"))
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
    except subprocess.TimeoutExpired:
        return "timed out"
    return done.stdout


def _copy(target: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", target)
    for folder in ("services", "client"):
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))


def test_the_layering_holds() -> None:
    assert ", 0 broken" in _lint(ROOT)


def test_every_rule_notices_a_module_that_breaks_it(tmp_path: Path) -> None:
    _copy(tmp_path)
    for name, (text, _) in _PLANTED.items():
        with (tmp_path / name).open("a", encoding="utf-8") as module:
            module.write("\n" + text)
    report = _lint(tmp_path)
    broken = [line for line in report.splitlines() if line.rstrip().endswith("BROKEN") or "BROKEN (" in line]
    rules = {rule for _, rule in _PLANTED.values()}
    missed = {rule for rule in rules if not any(line.startswith(rule) for line in broken)}
    assert missed == set(), report
    assert len(broken) == len(rules), report
