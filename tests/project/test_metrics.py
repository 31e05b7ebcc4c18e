"""Every metric is documented, and none is documented that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from services.gateway.envoy.metrics import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
_MADE = re.compile(r"\b(?:Counter|Gauge|Histogram|Summary)\(\s*\"(\w+)\"")
_DOCUMENTED = re.compile(r"`((?:sealcomb|envoy)_[a-z_]+)")


def made() -> set[str]:
    """The names of the services' own metrics."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py"))
    return {name for text in texts for name in _MADE.findall(text)}


def documented() -> set[str]:
    """The names in the operator's table."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Metrics\n")[2].partition("\n## ")[0]
    return set(_DOCUMENTED.findall(table))


def test_the_operators_table_has_every_metric_and_no_other() -> None:
    own = made()
    assert {"sealcomb_calls_total", "sealcomb_call_seconds"} <= own
    envoys = {name.removesuffix("_total") for name in documented() if name.startswith("envoy")}
    assert envoys == {name.removesuffix("_total") for name in FAMILIES}
    assert {name for name in documented() if name.startswith("sealcomb")} == own
