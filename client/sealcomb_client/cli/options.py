"""Options that several commands share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_QUOTA = re.compile(r"((?:calls|points|documents|bytes)_per_(?:day|month))=(\d{1,16})")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class JsonObject(click.ParamType[Any]):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The object in the text."""
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail("not a JSON object", param, ctx)
        return parsed


class Duration(click.ParamType[Any]):
    """A duration in seconds, or with a unit as in 30m, 12h, 90d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The seconds in the text."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail("not a duration such as 30m, 12h or 90d", param, ctx)
        return float(match[1]) * _SECONDS[match[2] or "s"]


class Quota(click.ParamType[Any]):
    """A quota by its name and amount."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Name and amount in the text."""
        if isinstance(value, tuple):
            return value
        match = _QUOTA.fullmatch(value)
        if match is None:
            self.fail("not a quota such as calls_per_day=1000 or bytes_per_month=0", param, ctx)
        return match[1], int(match[2])


FILTER = click.option(
    "--filter",
    "condition",
    type=JsonObject(),
    help='Condition on metadata, such as \'{"eq": {"field": "team", "value": "bees"}}\'.',
)
METADATA = click.option("--metadata", type=JsonObject(), help='Such as \'{"team": "bees"}\'.')
RECEIPT = click.option(
    "--receipt",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the signed deletion receipt to this file.",
)


def keep_receipt(text: str, file: Path | None) -> None:
    """Writes a deletion receipt where it was asked for. Raises ValueError where there is none."""
    if file is None:
        return
    if not text:
        raise ValueError("deleted, but the installation gave no receipt of it")
    file.write_text(text + "\n", encoding="utf-8")
