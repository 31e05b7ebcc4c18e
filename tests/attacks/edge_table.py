"""The table that `make attack-edge` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    row: str
    attack: str
    figure: str
    bound: str
    twin: str
    held: bool
    # Whether the machine was quiet enough to judge what took time.
    told: bool = True


def print_table(rows: Sequence[Row]) -> None:
    """Prints it, with as much room for each column as it needs."""
    head = Row("row", "attack", "figure", "bound", "twin", held=True)
    columns: tuple[Callable[[Row], str], ...] = (
        lambda row: row.row,
        lambda row: row.attack,
        lambda row: row.figure,
        lambda row: row.bound if row.held else row.bound + " MISSED",
        lambda row: row.twin,
    )
    widths = [max(len(column(row)) for row in (head, *rows)) for column in columns]
    for row in (head, *rows):
        cells = (column(row).ljust(width) for column, width in zip(columns, widths, strict=True))
        print(" | ".join(cells).rstrip())
