"""Envoy's own numbers beside those of the policy process, at the one private port.

Both the metrics and their labels are listed here, so that no value of a client's can become one:
listeners and services have names of ours, status codes are folded into classes.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from services.gateway.envoy.admin import AdminUnreachable, EnvoyAdmin
from services.gateway.envoy.plan import Json

# Families as Envoy's Prometheus endpoint names them, without the `_total` of a counter's samples.
FAMILIES = frozenset(
    {
        "envoy_cluster_membership_healthy",
        "envoy_cluster_membership_total",
        "envoy_cluster_outlier_detection_ejections_active",
        "envoy_cluster_upstream_cx_connect_fail",
        "envoy_cluster_upstream_rq_active",
        "envoy_cluster_upstream_rq_pending_overflow",
        "envoy_cluster_upstream_rq_retry",
        "envoy_http_downstream_cx_active",
        "envoy_http_downstream_cx",
        "envoy_http_downstream_rq_active",
        "envoy_http_downstream_rq",
        "envoy_http_downstream_rq_xx",
        "envoy_server_memory_allocated",
    }
)
LABELS = frozenset({"envoy_cluster_name", "envoy_http_conn_manager_prefix", "envoy_response_code_class"})
_STATS = (
    r"cluster\.[^.]+\.(?:membership_(?:healthy|total)|outlier_detection\.ejections_active"
    r"|upstream_cx_connect_fail|upstream_rq_(?:active|pending_overflow|retry))",
    r"http\.[^.]+\.downstream_(?:cx_(?:active|total)|rq_(?:active|total|[1-5]xx))",
    r"server\.memory_allocated",
)


def stats_config() -> Json:
    """Which numbers Envoy keeps: each costs memory and time for every call."""
    patterns = [{"safe_regex": {"regex": pattern}} for pattern in _STATS]
    return {"stats_matcher": {"inclusion_list": {"patterns": patterns}}}


class EnvoyCollector(Collector):
    """Reads them anew at each scrape; while Envoy does not answer there are none."""

    def __init__(self, admin: EnvoyAdmin) -> None:
        self._admin = admin

    def describe(self) -> list[Metric]:
        """Nothing beforehand: Envoy need not run yet when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The listed families with the listed labels."""
        try:
            text = self._admin.metrics()
        except AdminUnreachable:
            return
        for family in text_string_to_metric_families(text):
            if family.name in FAMILIES:
                family.samples = [one for one in family.samples if one.labels.keys() <= LABELS]
                yield family
