"""Affine maps of the unit square, and what they leave of a box.

A sheared or turned box is a quadrilateral, of which the frame may cut off a corner. A model needs a
box: the one that encloses what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Warp:
    """Where points of the unit square go: (x, y) -> (a x + b y + c, d x + e y + f)."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def point(self, x: float, y: float) -> Point:
        """Where one point goes."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    @property
    def growth(self) -> float:
        """By how much areas grow."""
        return abs(self.a * self.e - self.b * self.d)

    def inverse(self) -> Warp:
        """The map back."""
        det = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Warp(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))


def shear_x(share: float) -> Warp:
    """Moves a row at height y by ``-share * y`` of the side, to the left where that is positive."""
    return Warp(1, -share, 0, 0, 1, 0)


def shear_y(share: float) -> Warp:
    """Moves a column at x by ``-share * x`` of the side."""
    return Warp(1, 0, 0, -share, 1, 0)


def shift(x: float, y: float) -> Warp:
    """Moves everything by shares of the side."""
    return Warp(1, 0, x, 0, 1, y)


def rotation(degrees: float) -> Warp:
    """Turns about the centre, clockwise as one sees it (y grows downwards)."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return Warp(c, -s, 0.5 - 0.5 * c + 0.5 * s, s, c, 0.5 - 0.5 * s - 0.5 * c)


def seen_after(
    box: tuple[float, float, float, float], warps: Sequence[Warp]
) -> tuple[tuple[float, float, float, float], float]:
    """What maps, each followed by a cut to the unit square, leave of a box.

    Args:
        box: left, top, right, bottom; what lies outside the unit square is cut off first.

    Returns:
        The box that encloses what is left, and the area of what is left as a share of what the
        whole box would cover. A box that is gone is of no size.
    """
    left, top, right, bottom = box
    outline = clip([(left, top), (right, top), (right, bottom), (left, bottom)])
    whole = (right - left) * (bottom - top)
    for warp in warps:
        outline = clip([warp.point(x, y) for x, y in outline])
        whole *= warp.growth
    if not outline:
        return (0.0, 0.0, 0.0, 0.0), 0.0
    xs, ys = [x for x, _ in outline], [y for _, y in outline]
    return (min(xs), min(ys), max(xs), max(ys)), polygon_area(outline) / max(whole, _TINY)


def clip(outline: Sequence[Point]) -> list[Point]:
    """The part of a convex outline inside the unit square (Sutherland and Hodgman 1974)."""
    kept = list(outline)
    for axis, limit, sign in ((0, 0.0, 1), (0, 1.0, -1), (1, 0.0, 1), (1, 1.0, -1)):
        corners, kept = kept, []
        for i, corner in enumerate(corners):
            before = corners[i - 1]
            here, there = sign * (corner[axis] - limit), sign * (before[axis] - limit)
            if (here < 0) != (there < 0):
                t = there / (there - here)
                x = before[0] + t * (corner[0] - before[0])
                y = before[1] + t * (corner[1] - before[1])
                # Exactly on the line, so that no rounding leaves the square.
                kept.append((limit, y) if axis == 0 else (x, limit))
            if here >= 0:
                kept.append(corner)
    return kept


def polygon_area(outline: Sequence[Point]) -> float:
    """Area of a simple outline, whichever way round it runs."""
    total = 0.0
    for i, (x, y) in enumerate(outline):
        before = outline[i - 1]
        total += before[0] * y - x * before[1]
    return abs(total) / 2
