"""Filters and the metadata index against a plain reading of the same condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.vectorstore.columns import FIELDS_MAX, Columns
from services.vectorstore.filters import And, Between, Exists, Filter, Not, OneOf, Or, count, resolve
from services.vectorstore.metadata import Fields, Scalar, fields_of
from tests.vectorstore.fakes import metadata_of

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-3, 3).map(float),
    st.sampled_from(["", "a", "b", "1", "true", "x" * 100, "' OR 1=1 --"]),
)
NAMES = st.sampled_from(["f", "g", "h.i"])
ROWS = st.lists(
    st.dictionaries(NAMES, st.lists(SCALARS, max_size=3).map(tuple), max_size=3), min_size=1, max_size=20
)
FILTERS = st.recursive(
    st.one_of(
        st.builds(OneOf, NAMES, st.lists(SCALARS, min_size=1, max_size=3).map(tuple)),
        st.builds(
            Between,
            NAMES,
            st.integers(-3, 3).map(float),
            st.integers(-3, 3).map(float),
            st.booleans(),
            st.booleans(),
        ),
        st.builds(Exists, NAMES),
    ),
    lambda inner: st.one_of(
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)


def same(left: Any, right: Any) -> bool:
    """Whether two scalars are the same value of the same type."""
    return type(left) is type(right) and left == right


def holds(condition: Filter, fields: Fields) -> bool:
    """The meaning of a filter, read literally."""
    match condition:
        case And(filters):
            return all(holds(inner, fields) for inner in filters)
        case Or(filters):
            return any(holds(inner, fields) for inner in filters)
        case Not(inner):
            return not holds(inner, fields)
        case OneOf(field, values):
            return any(same(value, wanted) for value in fields.get(field, ()) for wanted in values)
        case Between(field, low, high, low_open, high_open):
            numbers = [value for value in fields.get(field, ()) if isinstance(value, float)]
            return any(
                (number > low if low_open else number >= low)
                and (number < high if high_open else number <= high)
                for number in numbers
            )
        case Exists(field):
            return field in fields


def compared(condition: Filter) -> set[str]:
    """The fields that a filter compares with."""
    match condition:
        case And(filters) | Or(filters):
            return set().union(*map(compared, filters))
        case Not(inner):
            return compared(inner)
        case OneOf(field) | Between(field):
            return {field}
        case Exists():
            return set()


@given(ROWS, FILTERS, st.data())
def test_f21_a_filter_finds_exactly_the_living_rows_for_which_it_holds(
    rows: list[Fields], condition: Filter, data: st.DataObject
) -> None:
    """F21: values are compared and nothing else, whatever they contain."""
    columns = Columns()
    for row, fields in enumerate(rows):
        columns.add(row, fields)
    live = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    there = {name for row, fields in enumerate(rows) if live[row] for name in fields}
    if live.any() and not compared(condition) <= there:
        with pytest.raises(InvalidArgument, match="has the field"):
            resolve(condition, columns, live)
        return
    wanted = [bool(live[row]) and holds(condition, fields) for row, fields in enumerate(rows)]
    assert resolve(condition, columns, live).tolist() == wanted


def test_an_unknown_field_is_named() -> None:
    columns = Columns()
    columns.add(0, {"colour": ("red",)})
    with pytest.raises(InvalidArgument, match="'size'") as caught:
        resolve(And((Exists("nothing"), OneOf("size", (1.0,)))), columns, np.array([True]))
    assert caught.value.reason == "UNKNOWN_FIELD"
    assert [violation.field for violation in caught.value.fields] == ["filter"]


def test_true_is_not_one_and_not_the_word() -> None:
    columns = Columns()
    values: list[Scalar] = [True, 1.0, "true", "1"]
    for row, value in enumerate(values):
        columns.add(row, {"f": (value,)})
    live = np.ones(4, bool)
    for row, value in enumerate(values):
        assert resolve(OneOf("f", (value,)), columns, live).nonzero()[0].tolist() == [row]


def test_fields_are_dotted_paths_and_arrays_are_several_values() -> None:
    raw = metadata_of({"a": {"b": "x", "c": [1, "two", [3], None]}, "n": None, "e": []})
    assert fields_of(raw) == {"a": (), "a.b": ("x",), "a.c": (1.0, "two"), "e": ()}


def test_the_number_of_fields_is_bounded() -> None:
    columns = Columns()
    for number in range(FIELDS_MAX):
        columns.add(0, {f"f{number}": ()})
    assert columns.too_many([["f1", "f2"], ["new"], ["f3"]]) == [1]


def test_fields_that_came_before_they_were_indexed_take_bounded_memory() -> None:
    columns = Columns()
    for number in range(4 * FIELDS_MAX):
        columns.add(0, {f"f{number}": (1.0,)})
    size = columns.size_bytes
    columns.add(0, {f"g{number}": (1.0,) for number in range(1000)})
    assert columns.size_bytes == size
    live = np.ones(1, np.bool_)
    assert resolve(Exists("f1"), columns, live).all()
    with pytest.raises(InvalidArgument, match="not indexed"):
        resolve(Exists(f"f{4 * FIELDS_MAX - 1}"), columns, live)


def test_conditions_are_counted_at_every_depth() -> None:
    assert count(Not(And((Exists("a"), Or((Exists("b"), Exists("c"))))))) == 6


def test_a_filter_over_many_rows_is_fast_enough_to_run_between_two_calls() -> None:
    columns = Columns()
    for row in range(20_000):
        columns.add(row, {"shard": (float(row % 10),)})
    mask = resolve(OneOf("shard", (3.0,)), columns, np.ones(20_000, bool))
    assert int(mask.sum()) == 2000
