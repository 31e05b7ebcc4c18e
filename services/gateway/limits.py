"""What an operator may set of an account's limits and quotas, and what that changes in its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.gateway.fields import check_limit, check_quota
from services.gateway.records import AccountRow


@dataclass(frozen=True, slots=True)
class LimitChange:
    """Limits to set; None, or no entry, leaves as it is. A quota of 0 is removed."""

    calls_per_second: float | None = None
    burst: int | None = None
    calls_in_flight: int | None = None
    quotas: Mapping[str, int] = field(default_factory=dict)


def check_limits(limits: LimitChange) -> None:
    """Raises InvalidArgument with the field that is wrong."""
    check_limit("limits.calls_per_second", limits.calls_per_second)
    check_limit("limits.burst", limits.burst)
    check_limit("limits.calls_in_flight", limits.calls_in_flight)
    for name, value in limits.quotas.items():
        what, period = name.split("_per_")
        check_quota(f"limits.per_{period}.{what}", value)


def changed_columns(row: AccountRow, limits: LimitChange) -> dict[str, object]:
    """The account's columns that the change sets, and their values."""
    new = {
        "calls_per_second": limits.calls_per_second,
        "burst": limits.burst,
        "calls_in_flight": limits.calls_in_flight,
        "quotas": quotas_after(row.quotas, limits) if limits.quotas else None,
    }
    return {name: value for name, value in new.items() if value is not None}


def quotas_after(before: Mapping[str, int], limits: LimitChange) -> dict[str, int]:
    """The quotas that were, changed."""
    return {name: value for name, value in {**before, **limits.quotas}.items() if value}


def request_parts(limits: LimitChange) -> tuple[str, ...]:
    """The change as texts, equal for equal changes, for the tag of a request."""
    parts: tuple[str, ...] = (repr(limits.calls_per_second), repr(limits.burst))
    if limits.calls_in_flight is not None or limits.quotas:
        parts += (repr(limits.calls_in_flight), repr(sorted(limits.quotas.items())))
    return parts
