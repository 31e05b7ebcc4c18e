"""What a caller sets for a source, checked field by field."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from services.common.errors import FieldViolation, InvalidArgument
from services.ingest.egress.refusals import EgressRefused
from services.ingest.egress.target import parse_url
from services.ingest.sources.contract import SourceSettings

_VIOLATIONS_MAX = 20


def parse_settings(
    model: type[SourceSettings], values: Mapping[str, object], *, field: str = "settings"
) -> SourceSettings:
    """Settings from what a caller sent. InvalidArgument names each bad field, and repeats no value."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        violations = [
            FieldViolation(_path(field, problem["loc"]), problem["msg"].removeprefix("Value error, ").lower())
            for problem in error.errors(include_input=False, include_url=False)[:_VIOLATIONS_MAX]
        ]
    raise InvalidArgument(f"{violations[0].field}: {violations[0].description}", fields=violations)


def checked_url(url: str) -> str:
    """An address that is fit to send requests to. ValueError otherwise; its host is checked when used."""
    try:
        return parse_url(url).url
    except EgressRefused as error:
        raise ValueError(error.message) from None


def _path(field: str, location: tuple[int | str, ...]) -> str:
    return field + "".join(f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in location)
