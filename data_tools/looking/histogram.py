"""Histograms as inline SVG, of one family with the line charts of a stage's report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

from data_tools.looking.distribution import Bins, Distribution
from wholegrain.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, nice_ticks
from wholegrain.report.numbers import figure, short

MAX_BARS = 40
_BASE = HEIGHT - BOTTOM
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_TICK_ROOM = 34
"""Units of the view box that the label of a tick needs."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Shares in % from 0 to ``top`` over the bins, the same for all histograms of a quantity."""

    bins: Bins
    top: float
    ratio: bool
    """Ticks are written as ratios, 1:2 to 2:1."""

    def x(self, value: float) -> float:
        """Of a value."""
        return LEFT + _PLOT_WIDTH * min(max(self.bins.position(value), 0.0), 1.0)

    def y(self, share: float) -> float:
        """Of a share in %."""
        return TOP + _PLOT_HEIGHT * (1 - min(share / self.top, 1.0))


def shares(values: Distribution, bins: Bins) -> np.ndarray:
    """Shares (B,) in % by bin."""
    counts = values.binned(bins)
    return 100 * counts / max(1, counts.sum())


def histogram(
    name: str, values: Distribution, frame: Frame, behind: Distribution | None = None
) -> Markup:
    """SVG of one distribution; ``behind`` is drawn as an outline to compare with."""
    bars = "".join(_bars(values, frame))
    outline = _outline(behind, frame) if behind is not None else ""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(describe(name, values))}">'
        f"{''.join(_grid(frame))}{bars}{outline}{''.join(_value_axis(frame))}</svg>"
    )


def describe(name: str, values: Distribution) -> str:
    """The histogram in words, for those who do not see it."""
    row = {key: short(value) for key, value in values.summary().items()}
    return (
        f"{name}: {values.count:,} values from {row['min']} to {row['max']}, "
        f"median {row['median']}, nine in ten between {row['5 %']} and {row['95 %']}"
    )


def _grid(frame: Frame) -> list[str]:
    parts = []
    for tick in nice_ticks(0, frame.top, 3):
        y = frame.y(tick)
        line = "" if tick == 0 else f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        parts.append(
            f'{line}<text class="tick" x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">'
            f"{short(tick)} %</text>"
        )
    return parts


def _bars(values: Distribution, frame: Frame) -> list[str]:
    bins = frame.bins
    counts = values.binned(bins)
    parts = []
    for i, (count, share) in enumerate(zip(counts, shares(values, bins), strict=True)):
        if not count:
            continue
        last = i == len(counts) - 1
        left, right = frame.x(bins.edges[i]), frame.x(bins.edges[i + 1])
        # A hair of paper between bars, and a bar that holds anything can be seen.
        gap = min(0.8, 0.15 * (right - left))
        top = min(frame.y(share), _BASE - 0.7)
        css = "bar rest" if last and bins.open_end else "bar"
        parts.append(
            f'<rect class="{css}" x="{left + gap / 2:.2f}" y="{top:.2f}" '
            f'width="{right - left - gap:.2f}" height="{_BASE - top:.2f}">'
            f"<title>{_range_of(bins, i)}: {count:,} ({figure(float(share))} %)</title></rect>"
        )
    return parts


def _range_of(bins: Bins, i: int) -> str:
    low, high = float(bins.edges[i]), float(bins.edges[i + 1])
    if bins.scale == "log":
        return f"{figure(low)} to {figure(high)}"
    if bins.open_end and i == len(bins.edges) - 2:
        return f"{low:,.0f} and more"
    return f"{low:,.0f}" if high - low == 1 else f"{low:,.0f} to {high - 1:,.0f}"


def _outline(values: Distribution, frame: Frame) -> str:
    edges = frame.bins.edges
    path = f"M{LEFT} {_BASE}"
    for i, share in enumerate(shares(values, frame.bins)):
        path += f"V{frame.y(share):.1f}H{frame.x(edges[i + 1]):.1f}"
    return f'<path class="outline" d="{path}V{_BASE}"/>'


def _value_axis(frame: Frame) -> list[str]:
    parts = [f'<path class="axis" d="M{LEFT} {_BASE}H{WIDTH - RIGHT}"/>']
    for place, label in _value_ticks(frame):
        x = LEFT + _PLOT_WIDTH * place
        anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
        parts.append(
            f'<path class="axis" d="M{x:.1f} {_BASE}v3"/>'
            f'<text class="tick" x="{x:.1f}" y="{_BASE + 13}" text-anchor="{anchor}">'
            f"{label}</text>"
        )
    return parts


def _value_ticks(frame: Frame) -> list[tuple[float, str]]:
    """Places (0 to 1) of round values, with their labels."""
    bins = frame.bins
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    if bins.scale == "whole":
        step = float(bins.edges[1] - bins.edges[0])
        ticks = [tick for tick in nice_ticks(low, high - step, 5) if tick == int(tick)]
        # A bar of one number stands for that number: its tick is below its middle.
        middle = step / 2 if step == 1 else 0.0
        return [(bins.position(tick + middle), short(tick)) for tick in ticks]
    if frame.ratio:
        powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        labels = [(2.0**power, _ratio(power)) for power in powers]
    else:
        labels = [(tick, short(tick)) for tick in _log_ticks(low, high)]
    return _with_room([(bins.position(value), label) for value, label in labels])


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [step * 10.0**power for power in decades for step in steps]
    return [float(f"{tick:.3g}") for tick in ticks if low <= tick <= high]


def _ratio(power: int) -> str:
    return f"{2**power}:1" if power >= 0 else f"1:{2**-power}"


def _with_room(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Every second, third, ... tick, so that labels do not touch."""
    for every in range(1, len(ticks) + 1):
        kept = ticks[::every]
        gaps = [b - a for (a, _), (b, _) in pairwise(kept)]
        if all(gap * _PLOT_WIDTH >= _TICK_ROOM for gap in gaps):
            return kept
    return ticks[:1]
