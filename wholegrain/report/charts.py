"""Line charts as inline SVG: small multiples, one metric each, coloured by the page's CSS.

A chart has no legend. The page's heading names the two colours once, and each chart's own
heading carries the last values in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from wholegrain.report.numbers import figure, short

WIDTH, HEIGHT = 280, 150
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 20
MAX_BINS = 84
"""Points drawn a line: about one each three pixels; more only blackens the page."""
MAX_DOTS = 30


@dataclass(frozen=True, slots=True)
class Line:
    """A series thinned to bins: mean line and the range inside each bin."""

    steps: np.ndarray  # (N,)
    mean: np.ndarray  # (N,)
    low: np.ndarray  # (N,)
    high: np.ndarray  # (N,)

    @property
    def binned(self) -> bool:
        return bool(np.any(self.high > self.low))


def thin(series: Mapping[int, float], bins: int = MAX_BINS) -> Line:
    """Mean, least and greatest value of `bins` runs of equally many points."""
    steps = np.array(sorted(series), dtype=np.float64)
    values = np.array([series[int(step)] for step in steps], dtype=np.float64)
    parts = np.array_split(np.arange(len(steps)), min(bins, len(steps)))
    return Line(
        steps=np.array([steps[p].mean() for p in parts]),
        mean=np.array([values[p].mean() for p in parts]),
        low=np.array([values[p].min() for p in parts]),
        high=np.array([values[p].max() for p in parts]),
    )


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers inside [low, high], their spacing 1, 2, 2.5 or 5 times a power of ten.

    >>> nice_ticks(0, 1), nice_ticks(3, 11)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [4.0, 6.0, 8.0, 10.0])
    """
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / spacing - 1e-9)
    last = math.floor(high / spacing + 1e-9)
    return [round(i * spacing, 12) for i in range(first, last + 1)]


def value_range(lines: Sequence[Line]) -> tuple[float, float]:
    """Range of the mean lines and of most of their bands, with a margin.

    A tenth of the bins may leave it, for one spike would flatten all the rest.
    """
    low = min(float(min(line.mean.min(), np.quantile(line.low, 0.1))) for line in lines)
    high = max(float(max(line.mean.max(), np.quantile(line.high, 0.9))) for line in lines)
    if high - low < 1e-12 + 1e-9 * abs(high):
        return (0.0, 1.0) if high == 0 else (low - abs(low) * 0.1, high + abs(high) * 0.1)
    pad = (high - low) * 0.06
    # A quantity that is never negative keeps zero as its floor when it comes close.
    floor = 0.0 if 0 <= low < (high - low) * 0.15 else low - pad
    return floor, high + pad


@dataclass(frozen=True, slots=True)
class Frame:
    """Plot area: steps 0..`right` and values `low`..`high` to units of the view box."""

    right: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.right

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def points(self, steps: np.ndarray, values: np.ndarray) -> list[str]:
        pairs = zip(steps, values, strict=True)
        return [f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in pairs]


def line_chart(name: str, splits: Mapping[str, Mapping[int, float]], last_step: int) -> Markup:
    """SVG of one metric; `splits` maps 'train' and 'val' to {step: value}, values finite.

    The x axis runs from 0 to `last_step`, the same for all charts of a report.
    """
    lines = {split: thin(series) for split, series in splits.items() if series}
    frame = Frame(max(last_step, 1), *value_range(list(lines.values())))
    drawn = [part for split, line in lines.items() for part in _draw_line(split, line, frame)]
    # An inner <svg> clips what leaves the plot area; a clipPath would need ids unique to the page.
    plot = (
        f'<svg x="{LEFT - 3}" y="{TOP - 3}" width="{WIDTH - LEFT - RIGHT + 6}" '
        f'height="{HEIGHT - TOP - BOTTOM + 5}" viewBox="{LEFT - 3} {TOP - 3} '
        f'{WIDTH - LEFT - RIGHT + 6} {HEIGHT - TOP - BOTTOM + 5}">{"".join(drawn)}</svg>'
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(describe(name, splits))}">{"".join(_axes(frame))}{plot}</svg>'
    )


def describe(name: str, splits: Mapping[str, Mapping[int, float]]) -> str:
    """The chart in words, for those who do not see it."""
    told = []
    for split, series in splits.items():
        steps = sorted(series)
        told.append(
            f"{split} from {figure(series[steps[0]])} at step {steps[0]} "
            f"to {figure(series[steps[-1]])} at step {steps[-1]}"
        )
    return f"{name}: {'; '.join(told)}"


def _axes(frame: Frame) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>']
    for tick in nice_ticks(frame.low, frame.high):
        y = frame.y(tick)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">'
            f"{short(tick)}</text>"
        )
    for tick in nice_ticks(0, frame.right):
        x = frame.x(tick)
        anchor = "end" if tick > 0.97 * frame.right else "start" if tick == 0 else "middle"
        parts.append(
            f'<path class="axis" d="M{x:.1f} {base}v3"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 13}" text-anchor="{anchor}">'
            f"{short(tick)}</text>"
        )
    return parts


def _draw_line(split: str, line: Line, frame: Frame) -> list[str]:
    css = "train" if split == "train" else "val"
    points = frame.points(line.steps, line.mean)
    parts = []
    if line.binned:
        outline = frame.points(line.steps, line.high) + frame.points(line.steps, line.low)[::-1]
        parts.append(f'<path class="band {css}" d="M{"L".join(outline)}Z"/>')
    if len(points) > 1:
        parts.append(f'<path class="line {css}" d="M{"L".join(points)}"/>')
    if len(points) == 1 or (css == "val" and len(points) <= MAX_DOTS):
        for step, value in zip(line.steps, line.mean, strict=True):
            parts.append(
                f'<circle class="dot {css}" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" '
                f'r="2"><title>step {step:,.0f}: {figure(float(value))}</title></circle>'
            )
    return parts
