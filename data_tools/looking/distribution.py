"""How a quantity is distributed, counted value by value in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["whole", "log"]

QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
_CELLS_A_FACTOR_E = 200
"""Cells of a continuous quantity for each factor e: a value is known to 0.25 %."""
_TAIL = 0.995
"""Whole numbers above this quantile share the last bar; a far tail would flatten the rest."""
_LEAST_FACTOR = 4.0
_STEPS = (1, 2, 5)


class Distribution:
    """Number, mean and extremes exactly, quantiles exactly or to 0.25 %.

    ``whole`` numbers are counted as they are. Positive real ones (``log``) are counted in cells of
    equal ratio, of which a thousand cover a factor of 150, so that memory does not grow with what
    is counted.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.cells: Counter[int] = Counter()
        # Of real numbers; whole ones are all in the cells.
        self._total, self._least, self._greatest = 0.0, math.inf, -math.inf

    def add(self, value: float) -> None:
        """Counts one value; of ``log``, one that is not above zero has no place and is left out."""
        if self.scale == "whole":
            self.cells[int(value)] += 1
        elif 0 < value < math.inf:
            self.cells[round(math.log(value) * _CELLS_A_FACTOR_E)] += 1
            self._total += value
            if value < self._least:
                self._least = value
            if value > self._greatest:
                self._greatest = value

    def merge(self, other: Distribution) -> None:
        """Takes in all that another one has counted."""
        self.cells.update(other.cells)
        self._total += other._total
        self._least = min(self._least, other._least)
        self._greatest = max(self._greatest, other._greatest)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return self.cells.total()

    @property
    def mean(self) -> float:
        """The mean; at least one value was counted, here and below."""
        if self.scale == "whole":
            return sum(cell * n for cell, n in self.cells.items()) / self.count
        return self._total / self.count

    @property
    def least(self) -> float:
        """The least value."""
        return float(min(self.cells)) if self.scale == "whole" else self._least

    @property
    def greatest(self) -> float:
        """The greatest value."""
        return float(max(self.cells)) if self.scale == "whole" else self._greatest

    def quantile(self, share: float) -> float:
        """The least value that at least ``share`` of all reach from below."""
        if share <= 0:
            return self.least
        if share >= 1:
            return self.greatest
        cells, counts = self._sorted()
        cell = cells[int(np.searchsorted(np.cumsum(counts), share * counts.sum() - 1e-9))]
        return min(max(self._value(cell), self.least), self.greatest)

    def summary(self) -> dict[str, float]:
        """Count, mean and quantiles, rounded for people."""
        row = {name: _rounded(self.quantile(share)) for name, share in QUANTILES.items()}
        return {"count": self.count, "mean": _rounded(self.mean), **row}

    def binned(self, bins: Bins) -> np.ndarray:
        """Counts (B,) by bin; values outside go to the first and the last."""
        cells, counts = self._sorted()
        values = np.array([self._value(int(cell)) for cell in cells])
        where = np.searchsorted(bins.edges, values, side="right") - 1
        return np.bincount(
            np.clip(where, 0, len(bins.edges) - 2), weights=counts, minlength=len(bins.edges) - 1
        ).astype(np.int64)

    def _value(self, cell: int) -> float:
        return float(cell) if self.scale == "whole" else math.exp(cell / _CELLS_A_FACTOR_E)

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        cells = np.array(sorted(self.cells), dtype=np.int64)
        return cells, np.array([self.cells[int(cell)] for cell in cells], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Bins:
    """Bars of a histogram.

    Attributes:
        edges: one more than there are bars; a bar holds ``edges[i] <= value < edges[i + 1]``.
        open_end: the last bar holds all that is greater, too.
    """

    scale: Scale
    edges: np.ndarray  # (B + 1,)
    open_end: bool

    def position(self, value: float) -> float:
        """Where a value lies between the first edge (0) and the last (1)."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        if self.scale == "whole":
            return (value - low) / (high - low)
        return math.log(value / low) / math.log(high / low)


def bins_for(values: Distribution, most: int) -> Bins:
    """At most ``most`` bars of equal width (``log``: of equal ratio) for what was counted."""
    if values.scale == "whole":
        return _whole_bins(values, most)
    low, high = values.quantile(0.001), values.quantile(0.999)
    widen = math.sqrt(max(1.0, _LEAST_FACTOR / (high / low)))
    # By a cell more, so that a tick at the very end of the values has its place.
    low, high = low / widen / 1.005, high * widen * 1.005
    return Bins("log", np.geomspace(low, high, most + 1), False)


def _whole_bins(values: Distribution, most: int) -> Bins:
    low, high = int(values.least), int(values.quantile(_TAIL))
    step = next(s for s in _nice_steps() if high // s - low // s + 1 <= most)
    first, last = low // step * step, high // step * step + step
    # Narrow data get room at both sides, lest a single value look like a wall.
    while (last - first) // step < 6:
        first, last = max(first - step, min(first, 0)), last + step
    open_end = values.greatest >= last
    return Bins("whole", np.arange(first, last + 1, step, dtype=np.float64), open_end)


def _nice_steps() -> Sequence[int]:
    return [step * 10**power for power in range(9) for step in _STEPS]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 else round(value, 1)
