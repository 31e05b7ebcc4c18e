"""Filters: conditions on metadata as a typed tree, resolved to a mask of rows.

A value is only ever compared, never parsed or interpreted, so there is nothing to inject into.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.common.errors import InvalidArgument, invalid
from services.vectorstore.columns import Columns, Mask
from services.vectorstore.metadata import Scalar

DEPTH_MAX = 16
CONDITIONS_MAX = 256
VALUES_MAX = 1000


@dataclass(frozen=True, slots=True)
class And:
    """All of them hold; none at all holds too."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of them holds."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class OneOf:
    """A value of the field equals one of these: both `eq` and `in`."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """A number of the field lies within the bounds."""

    field: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there."""

    field: str


Filter = And | Or | Not | OneOf | Between | Exists


def resolve(condition: Filter, columns: Columns, live: Mask) -> Mask:
    """The living rows that match.

    Raises InvalidArgument for a field that is not indexed, and for a comparison with one that no living row
    has, unless there is no row.
    """
    for name in _named(condition):
        if not columns.can_filter(name):
            raise invalid("filter", f"the field {name[:128]!r} is not indexed", reason="FIELD_NOT_INDEXED")
    if not live.any():
        return np.zeros(len(live), np.bool_)
    for name in _compared(condition):
        if not columns.has(name, live):
            raise _no_field(name)
    return _mask(condition, columns, len(live)) & live


def count(condition: Filter) -> int:
    """How many conditions the tree has."""
    match condition:
        case And(filters) | Or(filters):
            return 1 + sum(map(count, filters))
        case Not(inner):
            return 1 + count(inner)
        case _:
            return 1


def _compared(condition: Filter) -> Iterator[str]:
    match condition:
        case And(filters) | Or(filters):
            for inner in filters:
                yield from _compared(inner)
        case Not(inner):
            yield from _compared(inner)
        case OneOf(field) | Between(field):
            yield field
        case Exists():
            pass  # to ask whether a field is there is no mistake where it is not


def _named(condition: Filter) -> Iterator[str]:
    match condition:
        case And(filters) | Or(filters):
            for inner in filters:
                yield from _named(inner)
        case Not(inner):
            yield from _named(inner)
        case OneOf(field) | Between(field) | Exists(field):
            yield field


def _mask(condition: Filter, columns: Columns, rows: int) -> Mask:
    match condition:
        case And(filters):
            mask = np.ones(rows, np.bool_)
            for inner in filters:
                mask &= _mask(inner, columns, rows)
            return mask
        case Or(filters):
            mask = np.zeros(rows, np.bool_)
            for inner in filters:
                mask |= _mask(inner, columns, rows)
            return mask
        case Not(inner):
            return ~_mask(inner, columns, rows)
        case OneOf(field, values):
            return columns.one_of(field, values, rows)
        case Between(field, low, high, low_open, high_open):
            return columns.between(field, low, high, low_open, high_open, rows)
        case Exists(field):
            return columns.exists(field, rows)


def _no_field(name: str) -> InvalidArgument:
    return invalid(
        "filter", f"no point of the collection has the field {name[:128]!r}", reason="UNKNOWN_FIELD"
    )
