"""Reading of `metrics.jsonl` into one series a metric and split."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

RESERVED = ("step", "split", "time")


@dataclass(slots=True)
class Curves:
    """Series of a run: `series[name][split][step] = value`, plus what could not be drawn."""

    series: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    unread_lines: int = 0
    """Lines that are not an object with a step, such as a last line cut by a kill."""
    non_finite: int = 0
    """Values that were NaN or infinite; they are gaps in the curve."""

    @property
    def last_step(self) -> int:
        steps = (step for splits in self.series.values() for s in splits.values() for step in s)
        return max(steps, default=0)


def read_curves(path: Path | None) -> Curves:
    """Read `path`; an absent file gives empty curves, since a stage may only evaluate.

    A resumed run writes the steps after its checkpoint again: the later value stands.
    """
    if path is None or not path.exists():
        return Curves()
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_curves(lines)


def parse_curves(lines: Iterable[str]) -> Curves:
    """The series in JSON lines; lines and values that cannot be drawn are counted, not raised."""
    curves = Curves()
    for line in lines:
        if not line.strip():
            continue
        entry = _parse_line(line)
        if entry is None:
            curves.unread_lines += 1
            continue
        _add(curves, entry)
    return curves


def _parse_line(line: str) -> Mapping[str, object] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return None
    return entry


def _add(curves: Curves, entry: Mapping[str, object]) -> None:
    step, split = entry["step"], str(entry.get("split", "train"))
    assert isinstance(step, int)
    for name, value in entry.items():
        if name in RESERVED or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            curves.non_finite += 1
            continue
        curves.series.setdefault(name, {}).setdefault(split, {})[step] = float(value)


def in_groups(names: Iterable[str]) -> list[str]:
    """Metric names with those that share what precedes the first '/' side by side.

    Groups, and the names in each, stay in order of appearance.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return [name for group in groups.values() for name in group]
