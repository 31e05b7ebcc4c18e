"""The tables of the vector benchmark, and which of the wanted ratios hold."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_COLUMNS = (
    ("one client", "QPS"),
    ("four clients", "QPS"),
    ("filtered", "QPS, a tenth matches"),
    ("batches of 32", "QPS, 32 a call"),
)
# What is wanted of ours: figure, peer, least ratio.
_WANTED = (
    ("one client", "chroma", 2.0),
    ("one client", "pgvector", 2.0),
    ("four clients", "chroma", 3.0),
    ("four clients", "pgvector", 1.0),
    ("filtered", "chroma", 10.0),
    ("filtered", "pgvector", 10.0),
    ("batches of 32", "hnswlib", 0.6),
    ("written", "hnswlib", 0.9),
)
_MEMORY_MOST = 1.15
_RECALL_LEAST = 0.95


@dataclass
class Figures:
    """One contender's medians and recalls."""

    version: str
    values: dict[str, float] = field(default_factory=dict)
    recalls: dict[str, float] = field(default_factory=dict)


def report(all_figures: Mapping[str, Figures], arguments: argparse.Namespace) -> list[str]:
    """Prints the tables; the wanted ratios that were missed."""
    print(
        f"{arguments.rows} x {arguments.dimension} clustered unit vectors, 10 nearest, "
        f"medians of {arguments.rounds} rounds of {arguments.queries} queries; QPS and recall@10"
    )
    print(f"{'':10}" + "".join(f"{name:>22}" for name, _unit in _COLUMNS) + f"{'server CPU ms/query':>22}")
    for name, figures in all_figures.items():
        cells = (_cell(figures, column) for column, _unit in _COLUMNS)
        print(f"{name:10}" + "".join(cells) + f"{figures.values['cpu ms']:22.2f}")
    print(f"{'':10}{'written/s':>12}{'indexed/s':>12}{'CPU us/vector':>15}{'bytes/vector':>14}  version")
    for name, figures in all_figures.items():
        values = figures.values
        print(
            f"{name:10}{values['written']:12.0f}{values['indexed']:12.0f}{values['fill cpu']:15.0f}"
            f"{values['memory']:14.0f}  {figures.version}"
        )
    return ratios(all_figures, arguments.only.split(","))


def _cell(figures: Figures, column: str) -> str:
    if column not in figures.values:
        return f"{'-':>22}"
    return f"{figures.values[column]:14.0f} {figures.recalls[column]:7.3f}"


def ratios(all_figures: Mapping[str, Figures], asked: Collection[str]) -> list[str]:
    """Prints the wanted ratios to the peers that were asked for; the missed ones, and what has no figure."""
    ours = all_figures.get("sealcomb")
    if ours is None:
        return []
    missed = []

    def line(name: str, ratio: float, wanted: float, *, good: bool) -> None:
        print(f"{name:42}{ratio:8.2f}{wanted:9.2f}{'' if good else '  missed'}")
        if not good:
            missed.append(name)

    def ratio_of(figure: str, peer: str) -> float:
        # NaN is neither at least nor at most anything.
        theirs = all_figures[peer].values.get(figure, math.nan) if peer in all_figures else math.nan
        return ours.values.get(figure, math.nan) / theirs

    print(f"{'sealcomb to':42}{'ratio':>8}{'wanted':>9}")
    for figure, peer, least in _WANTED:
        if peer in asked:
            ratio = ratio_of(figure, peer)
            line(f"{peer}, {figure}", ratio, least, good=ratio >= least)
    if "hnswlib" in asked:
        ratio = ratio_of("memory", "hnswlib")
        line("hnswlib, memory of a vector (at most)", ratio, _MEMORY_MOST, good=ratio <= _MEMORY_MOST)
    for figure, recall in ours.recalls.items():
        if not recall >= _RECALL_LEAST:
            line(f"recall, {figure}", recall, _RECALL_LEAST, good=False)
    return missed
