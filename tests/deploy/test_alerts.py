"""Alerts: each is a query that parses, over metrics that exist, with a section in the runbook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from services.gateway.envoy.metrics import FAMILIES
from tests.deploy.rendered import Json, named, rendered
from tests.project.test_metrics import made

ROOT = Path(__file__).resolve().parents[2]
# Of Prometheus and kubelet.
_FOREIGN = {"up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
_SECTION = re.compile(r"^## (\w+)\n+(.+?)(?=\n## |\Z)", re.MULTILINE | re.DOTALL)
_SUFFIX = re.compile(r"_(?:total|bucket|sum|count)$")


def alerts() -> list[Json]:
    """The rules of the component."""
    groups = named(rendered("aws"), "PrometheusRule", "sealcomb")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(query: str) -> set[str]:
    """The metrics that a query selects. Raises ValueError for what is no query."""
    return {selector.name for selector in _selectors(promql_parser.parse(query))}


def _selectors(expression: Any) -> Iterator[Any]:
    if hasattr(expression, "matchers"):
        yield expression
    for name in ("lhs", "rhs", "expr", "args", "vector_selector"):
        below = getattr(expression, name, None) or []
        for part in below if isinstance(below, list) else [below]:
            yield from _selectors(part)


def sections() -> dict[str, str]:
    """The runbook's sections."""
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    return {name: body.strip() for name, body in _SECTION.findall(text)}


def test_every_alert_asks_for_metrics_that_exist() -> None:
    known = {_SUFFIX.sub("", name) for name in made() | FAMILIES} | _FOREIGN
    for rule in alerts():
        asked = metrics_of(rule["expr"])
        assert asked, rule["alert"]
        assert {_SUFFIX.sub("", name) for name in asked} <= known, rule["alert"]


def test_a_query_that_does_not_parse_and_a_metric_that_nobody_has_are_noticed() -> None:
    """The twin."""
    with pytest.raises(ValueError, match=r"."):
        metrics_of("sum by (pod (up)")
    assert metrics_of('rate(sealcomb_nothing_total{code="up"}[5m]) > 0') == {"sealcomb_nothing_total"}


def test_every_alert_has_a_section_in_the_runbook_and_no_section_is_left_over() -> None:
    found = sections()
    assert set(found) == {rule["alert"] for rule in alerts()}
    assert all(len(body) > 200 for body in found.values())
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "warn")
