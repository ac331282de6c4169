"""The comparison as one picture (SVG): accuracy of each method, and beside it what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.grounding_recipes import PRETRAINED, STARTS
from wholegrain.report.charts import nice_ticks

WIDTH = 960
_LABELS, _GAP, _EDGE = 190, 40, 24
_TOP, _ROW, _HOST, _BOTTOM = 74, 40, 30, 46
_INK, _FAINT, _GRID = "#1f2328", "#59636e", "#d8dee4"
_COLOURS = {PRETRAINED: "#0b62c4", STARTS[1]: "#b35900"}
_COST = "#3f7f3f"
_STYLE = f"text{{font:12px sans-serif;fill:{_INK}}}.s{{font-size:11px;fill:{_FAINT}}}"
_STYLE += ".h{font-weight:bold}.t{font-size:15px;font-weight:bold}"


@dataclass(frozen=True)
class Axis:
    """Values of one panel, `low` to `high`, to x; decades where `log`."""

    left: float
    right: float
    low: float
    high: float
    log: bool = False

    def x(self, value: float) -> float:
        """Where a value lies; what leaves the axis is drawn at its end."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = min(max((at - low) / (high - low), 0.0), 1.0)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Round numbers on it."""
        if not self.log:
            return nice_ticks(self.low, self.high)
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def picture(report: Mapping[str, Any]) -> str:
    """SVG of a report as `benchmarks.grounding` writes it."""
    groups = _groups(report["rows"])
    middle = _LABELS + (WIDTH - _LABELS - _GAP - _EDGE) * 0.62
    accuracy = Axis(_LABELS, middle, *_accuracy_range(report))
    cost = Axis(middle + _GAP, WIDTH - _EDGE, *_cost_range(report["rows"]), log=True)
    parts, y = [], float(_TOP)
    for host, methods in groups.items():
        parts.append(_text(8, y + 18, f"host: {host}", "h"))
        y += _HOST
        for rows in methods.values():
            parts += _method(rows, accuracy, cost, y)
            y += _ROW
    height = y + _BOTTOM
    frame = [*_grid(accuracy, y, "%"), *_grid(cost, y, "ms")]
    constant = 100 * report["baselines"]["best constant box"]["acc@0.5"]
    at = accuracy.x(constant)
    frame.append(
        f'<path d="M{at:.1f} {_TOP}V{y:.1f}" stroke="{_FAINT}" stroke-dasharray="4 3"/>'
        + _text(at + 4, _TOP + 10, f"best constant box {constant:.1f}", "s")
    )
    whole = [*_heading(report, accuracy, cost), *frame, *parts]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(whole)}</svg>\n'
    )


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Host -> method -> its rows."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        groups.setdefault(row["host"], {}).setdefault(row["method"], []).append(row)
    return groups


def _method(rows: Sequence[Mapping[str, Any]], accuracy: Axis, cost: Axis, top: float) -> list[str]:
    """One method: a line a start, each seed a dot, the mean with its interval; then its cost."""
    parts = [_text(16, top + _ROW / 2 + 4, rows[0]["title"])]
    for row in rows:
        y = top + (_ROW / 2 if len(rows) == 1 else 12 if row["start"] == PRETRAINED else 27)
        figure, colour = row["figures"]["acc@0.5"], _COLOURS[row["start"]]
        interval = figure["t_95"] or figure["photos_95"]
        low, high = (accuracy.x(100 * bound) for bound in interval)
        mean = accuracy.x(100 * figure["mean"])
        told = f"{row['title']}, {row['start']}: {100 * figure['mean']:.1f} %"
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><title>{escape(told)}</title>'
            f'<path d="M{low:.1f} {y}H{high:.1f}" stroke-width="2" stroke-opacity=".55"/>'
            f'<path d="M{mean:.1f} {y - 6}V{y + 6}" stroke-width="2.5"/>'
            + "".join(
                f'<circle cx="{accuracy.x(100 * seed):.1f}" cy="{y}" r="3" fill-opacity=".45" '
                'stroke="none"/>'
                for seed in figure["seeds"]
            )
            + "</g>"
        )
    found = next((row["cost"] for row in rows if row["cost"] is not None), None)
    if found is None:
        return parts
    y = top + _ROW / 2
    places = [cost.x(1000 * seconds / int(n)) for n, seconds in found["seconds"].items()]
    parts.append(f'<path d="M{min(places):.1f} {y}H{max(places):.1f}" stroke="{_COST}"/>')
    for place, fill in zip(places, ("#fff", _COST), strict=True):
        parts.append(
            f'<circle cx="{place:.1f}" cy="{y}" r="4" fill="{fill}" stroke="{_COST}" '
            'stroke-width="1.5"/>'
        )
    return parts


def _heading(report: Mapping[str, Any], accuracy: Axis, cost: Axis) -> list[str]:
    seeds = max(len(row["seeds"]) for row in report["rows"])
    bars = "95 % t interval over seeds" if seeds > 1 else "95 % interval over photos"
    of = f"one of {seeds} seeds" if seeds > 1 else "the one seed"
    parts = [
        _text(8, 22, f"Grounding methods on {report['title']}", "t"),
        _text(accuracy.left, 44, f"Acc@0.5 in %; bar: {bars}; dot: {of}", "s"),
        _text(cost.left, 44, "ms an expression on a photo", "s"),
    ]
    drawn = [start for start in STARTS if any(row["start"] == start for row in report["rows"])]
    for start, x in zip(drawn, (accuracy.left, accuracy.left + 130), strict=False):
        parts.append(f'<path d="M{x} 58h18" stroke="{_COLOURS[start]}" stroke-width="3"/>')
        parts.append(_text(x + 24, 62, start, "s"))
    for x, fill, told in ((cost.left + 6, "#fff", "1 asked"), (cost.left + 82, _COST, "16 asked")):
        parts.append(f'<circle cx="{x}" cy="58" r="4" fill="{fill}" stroke="{_COST}"/>')
        parts.append(_text(x + 10, 62, told, "s"))
    return parts


def _grid(axis: Axis, bottom: float, unit: str) -> list[str]:
    parts = []
    for tick in axis.ticks():
        x = axis.x(tick)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom:.1f}" stroke="{_GRID}"/>')
        parts.append(_text(x, bottom + 16, f"{tick:g}", "s", "middle"))
    middle = (axis.left + axis.right) / 2
    parts.append(_text(middle, bottom + 34, unit, "s", "middle"))
    return parts


def _text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    look = f' class="{css}"' if css else ""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{look}{end}>{escape(words)}</text>'


def _accuracy_range(report: Mapping[str, Any]) -> tuple[float, float]:
    """From 0 to above every interval and seed, in %."""
    top = 100 * float(report["baselines"]["best constant box"]["acc@0.5"])
    for row in report["rows"]:
        figure = row["figures"]["acc@0.5"]
        ends = [*(figure["t_95"] or figure["photos_95"]), figure["max"]]
        top = max(top, *(100 * end for end in ends))
    return 0.0, min(100.0, 5 * math.ceil(top / 5 + 0.2))


def _cost_range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Whole decades around every cost, in ms an expression."""
    values = [
        1000 * seconds / int(count)
        for row in rows
        if row["cost"] is not None
        for count, seconds in row["cost"]["seconds"].items()
    ] or [1.0, 10.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)
