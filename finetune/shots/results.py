"""From scores to the tables of the protocols.

A set's figure is the mean over seeds, with their standard deviation (n - 1). The harmonic mean of a
row, HM = 2 B N / (B + N), is that of its means; so is that of the mean row, as the tables of the
field are printed, and not the mean of its column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from finetune.shots.learn import Score

MEAN = "mean"
_NAME, _CELL, _HM = 18, 16, 8

Scores = Mapping[str, Mapping[str, Sequence[Score]]]
"""Set to part (`base`, `novel`, `all`) to one score a seed."""


def harmonic_mean(base: float, novel: float) -> float:
    """``2 B N / (B + N)``; 0 where both are."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


@dataclass(frozen=True)
class Figure:
    """An accuracy in percent over seeds."""

    mean: float
    std: float | None
    """None of a single seed, and of a mean over sets."""
    seeds: tuple[float, ...] = ()
    """Of each."""
    count: int = 0
    """Test images."""

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Figure:
        """Of one score a seed."""
        percents = [score.percent for score in scores]
        std = stdev(percents) if len(percents) > 1 else None
        return cls(fmean(percents), std, tuple(percents), scores[0].count)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "mean": self.mean,
            "std": self.std,
            "seeds": list(self.seeds),
            "count": self.count,
        }

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} +- {self.std:.2f}"


@dataclass(frozen=True)
class Table:
    """The figures of a method."""

    rows: dict[str, dict[str, Figure]]
    """Set to part to figure, the set that was learnt from first where there is one."""
    mean: dict[str, Figure]
    """Part to the mean over sets, the source apart."""

    @classmethod
    def of(cls, scores: Scores, source: str | None = None) -> Table:
        """Of all scores of a method.

        Args:
            scores: of each set.
            source: the set whose row does not count into the mean.
        """
        rows = {
            name: {part: Figure.of(each) for part, each in parts.items()}
            for name, parts in scores.items()
        }
        counted = [row for name, row in rows.items() if name != source]
        parts = counted[0].keys() if counted else ()
        mean = {part: Figure(fmean(row[part].mean for row in counted), None) for part in parts}
        return cls(rows, mean)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with harmonic means where there are halves."""
        found: dict[str, Any] = {"sets": {n: _plain(row) for n, row in self.rows.items()}}
        found[MEAN] = {**{part: each.mean for part, each in self.mean.items()}}
        if "novel" in self.mean:
            found[MEAN]["hm"] = _hm(self.mean)
            found[MEAN]["mean_of_hm"] = fmean(map(_hm, self.rows.values()))
        return found


def _plain(row: Mapping[str, Figure]) -> dict[str, Any]:
    found: dict[str, Any] = {part: figure.to_dict() for part, figure in row.items()}
    if "novel" in row:
        found["hm"] = _hm(row)
    return found


def _hm(row: Mapping[str, Figure]) -> float:
    return harmonic_mean(row["base"].mean, row["novel"].mean)


def render(tables: Mapping[str, Table], titles: Mapping[str, str]) -> str:
    """The tables as text, one method after the other.

    Args:
        tables: by method.
        titles: of sets.
    """
    lines: list[str] = []
    for method, table in tables.items():
        parts = list(next(iter(table.rows.values())))
        halves = "novel" in parts
        head = f"{method:<{_NAME}}" + "".join(f"{part:>{_CELL}}" for part in parts)
        lines.append(head + (f"{'HM':>{_HM}}" if halves else ""))
        for name, row in [*table.rows.items(), *([(MEAN, table.mean)] if table.mean else [])]:
            line = f"{titles.get(name, name):<{_NAME}}"
            line += "".join(f"{row[part]!s:>{_CELL}}" for part in parts)
            lines.append(line + (f"{_hm(row):>{_HM}.2f}" if halves else ""))
        lines.append("")
    lines.append("accuracies in %; mean +- standard deviation over seeds")
    return "\n".join(lines)
