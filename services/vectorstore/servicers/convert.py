"""Between messages and the domain: every check of a request that needs no state is here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from google.protobuf.struct_pb2 import Value

from sealcomb.v1 import filter_pb2, vector_service_pb2
from services.common.errors import InvalidArgument, invalid
from services.vectorstore import filters, metadata
from services.vectorstore.index import Metric, Vectors
from services.vectorstore.metadata import Scalar

POINTS_MAX = 1000
ID_CHARS_MAX = 256
TEXT_BYTES_MAX = 64 * 1024
TOP_K_MAX = 1000
EF_MAX = 4096
# Beyond it, squares leave the range of single precision.
_LENGTH_MAX = 1e18
_LENGTH_MIN = 1e-18


def collection_name(name: str) -> str:
    """A collection's name as a request gives it."""
    if not 1 <= len(name) <= 256:
        raise invalid("collection", "must have 1 to 256 characters")
    return name


def vector(floats: Sequence[float], raw: bytes, dimension: int, metric: Metric, field: str) -> Vectors:
    """One vector from its two forms. Raises InvalidArgument that names the field."""
    if raw:
        if len(floats):
            raise invalid(field, "vector and vector_f32 are both set; set one")
        if len(raw) != 4 * dimension:
            raise _wrong_size(f"{field}_f32", len(raw) / 4, dimension)
        values = np.frombuffer(raw, "<f4").astype(np.float32)
        field += "_f32"
    else:
        values = np.fromiter(floats, np.float32)
        if not len(values):
            raise invalid(field, f"is not set; it must have {dimension} numbers")
        if len(values) != dimension:
            raise _wrong_size(field, len(values), dimension)
    wide = values.astype(np.float64)
    length = math.sqrt(wide @ wide)
    if not math.isfinite(length):
        raise invalid(field, "has a number that is not finite")
    if length > _LENGTH_MAX:
        raise invalid(field, f"is longer than {_LENGTH_MAX:g}; scale it down")
    if metric is Metric.COSINE and length < _LENGTH_MIN:
        raise invalid(field, "is zero, which has no direction to compare by COSINE")
    return values


def vectors(queries: Sequence[vector_service_pb2.QueryRequest], dimension: int, metric: Metric) -> Vectors:
    """The vectors of a batch of queries, parsed and checked in one go where all come as bytes."""
    raws = [query.vector_f32 for query in queries]
    if all(len(raw) == 4 * dimension for raw in raws) and not any(query.vector for query in queries):
        values = np.frombuffer(b"".join(raws), "<f4").reshape(len(raws), dimension).astype(np.float32)
        wide = values.astype(np.float64)
        lengths = np.sqrt(np.einsum("qd,qd->q", wide, wide))
        least = _LENGTH_MIN if metric is Metric.COSINE else 0.0
        # Written so that what is not a number is not good.
        if bool(((lengths >= least) & (lengths <= _LENGTH_MAX)).all()):
            return values
    return np.stack(
        [vector(query.vector, query.vector_f32, dimension, metric, "vector") for query in queries]
    )


def point_ids(ids: Iterable[str]) -> list[str]:
    """The ids of a request; a repeated one counts once."""
    found = list(dict.fromkeys(ids))
    if len(found) > POINTS_MAX:
        raise invalid("ids", f"has more than {POINTS_MAX}; send several calls")
    for position, id_ in enumerate(found):
        check_id(id_, f"ids[{position}]")
    return found


def top_k(requested: int, *, most: int = TOP_K_MAX) -> int:
    """How many hits to return; 10 where not set."""
    if requested > most:
        raise invalid("top_k", f"is more than {most}")
    return requested or 10


def ef(requested: int, k: int) -> int:
    """The size of the search frontier; 0 where not set."""
    if requested and not k <= requested <= EF_MAX:
        raise invalid("ef", f"must be top_k to {EF_MAX}")
    return requested


def text(value: str, field: str) -> str:
    """A point's text."""
    if len(value.encode()) > TEXT_BYTES_MAX:
        raise invalid(field, f"is larger than {TEXT_BYTES_MAX} bytes")
    return value


def filter_of(message: filter_pb2.Filter) -> filters.Filter:
    """A filter. Raises InvalidArgument that names the place in the tree."""
    condition = _filter(message, "filter", 1)
    if filters.count(condition) > filters.CONDITIONS_MAX:
        raise invalid("filter", f"has more than {filters.CONDITIONS_MAX} conditions")
    return condition


def _filter(message: filter_pb2.Filter, field: str, depth: int) -> filters.Filter:
    if depth > filters.DEPTH_MAX:
        raise invalid("filter", f"is nested deeper than {filters.DEPTH_MAX} levels")
    match message.WhichOneof("condition"):
        case "and":
            inner = getattr(message, "and").filters
            return filters.And(tuple(_filters(inner, f"{field}.and.filters", depth)))
        case "or":
            inner = getattr(message, "or").filters
            return filters.Or(tuple(_filters(inner, f"{field}.or.filters", depth)))
        case "not":
            return filters.Not(_filter(getattr(message, "not"), f"{field}.not", depth + 1))
        case "eq":
            name = _field_name(message.eq.field, f"{field}.eq")
            return filters.OneOf(name, (_scalar(message.eq.value, f"{field}.eq.value"),))
        case "in":
            return _in(getattr(message, "in"), f"{field}.in")
        case "range":
            return _range(message.range, f"{field}.range")
        case "exists":
            return filters.Exists(_field_name(message.exists.field, f"{field}.exists"))
        case _:
            raise invalid(field, "has no condition")


def _filters(messages: Iterable[filter_pb2.Filter], field: str, depth: int) -> Iterator[filters.Filter]:
    for position, message in enumerate(messages):
        yield _filter(message, f"{field}[{position}]", depth + 1)


def _in(message: filter_pb2.Filter.In, field: str) -> filters.Filter:
    name = _field_name(message.field, field)
    if not 1 <= len(message.values) <= filters.VALUES_MAX:
        raise invalid(f"{field}.values", f"must have 1 to {filters.VALUES_MAX} values")
    values = [_scalar(value, f"{field}.values[{place}]") for place, value in enumerate(message.values)]
    return filters.OneOf(name, tuple(values))


def _range(message: filter_pb2.Filter.Range, field: str) -> filters.Filter:
    name = _field_name(message.field, field)
    bounds = {
        bound: getattr(message, bound) for bound in ("gt", "gte", "lt", "lte") if message.HasField(bound)
    }
    if not bounds:
        raise invalid(field, "has no bound; set gt, gte, lt or lte")
    for bound, number in bounds.items():
        if math.isnan(number):
            raise invalid(f"{field}.{bound}", "is not a number")
    low = max(bounds.get("gt", -math.inf), bounds.get("gte", -math.inf))
    high = min(bounds.get("lt", math.inf), bounds.get("lte", math.inf))
    return filters.Between(name, low, high, bounds.get("gt") == low, bounds.get("lt") == high)


def _field_name(name: str, field: str) -> str:
    if not 1 <= len(name) <= metadata.PATH_CHARS_MAX:
        raise invalid(f"{field}.field", f"must have 1 to {metadata.PATH_CHARS_MAX} characters")
    return name


def _scalar(value: Value, field: str) -> Scalar:
    kind = value.WhichOneof("kind")
    if kind not in ("string_value", "number_value", "bool_value"):
        raise invalid(field, "must be a string, a number or a boolean")
    if kind == "number_value" and math.isnan(value.number_value):
        raise invalid(field, "is not a number")
    scalar: Scalar = getattr(value, kind)
    return scalar


def check_id(id_: str, field: str) -> None:
    if not 1 <= len(id_) <= ID_CHARS_MAX:
        raise invalid(field, f"must have 1 to {ID_CHARS_MAX} characters")


def _wrong_size(field: str, size: float, dimension: int) -> InvalidArgument:
    return invalid(
        field, f"has {size:g} numbers, but the collection has dimension {dimension}", reason="WRONG_DIMENSION"
    )
