"""The figures that the few-shot protocols are published with, and whether they agree.

``published.csv`` holds them in percent: those of MMA (Yang et al., CVPR 2024, tables of its paper
and README) and the means of CLIP without training from the same place.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from finetune.shots.results import MEAN, harmonic_mean

_FILE = Path(__file__).with_name("published.csv")
_HALF_UNIT = 0.005  # of the last printed digit

Table = dict[str, dict[str, float]]
"""Set, or `mean`, to part (`base`, `novel`, `hm`, `all`) to percent."""


def published(method: str, protocol: str) -> Table:
    """The table of a method under a protocol; empty where none is known."""
    table: Table = {}
    with open(_FILE, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["method"], row["protocol"]) == (method, protocol):
                table.setdefault(row["set"], {})[row["part"]] = float(row["percent"])
    return table


def disagreements(table: Table, source: str | None = None) -> list[str]:
    """What in a printed table does not follow from the rest of it, one line each.

    A harmonic mean must be that of its row, a mean that of its column, both to the printed digits.

    Args:
        table: of `published`.
        source: the set that is learnt from, which does not count into the mean.
    """
    found = []
    for name, row in table.items():
        if {"base", "novel", "hm"} <= row.keys():
            value = harmonic_mean(row["base"], row["novel"])
            # The roundings of base and novel move it by half a unit at most, its own as much.
            if abs(value - row["hm"]) > 2 * _HALF_UNIT + 1e-9:
                found.append(f"{name}: hm is {row['hm']:.2f}, but its row gives {value:.2f}")
    if MEAN in table:
        found += _columns(table, source)
    return found


def _columns(table: Table, source: str | None) -> list[str]:
    rows: list[Mapping[str, float]] = [
        row for name, row in table.items() if name not in (MEAN, source)
    ]
    found = []
    for part, printed in table[MEAN].items():
        values = [row[part] for row in rows if part in row]
        if part == "hm" or not values:  # of the means, not a mean of its column
            continue
        value = sum(values) / len(values)
        if abs(value - printed) > 2 * _HALF_UNIT + 1e-9:
            found.append(f"{MEAN}: {part} is {printed:.2f}, but its column gives {value:.2f}")
    return found
