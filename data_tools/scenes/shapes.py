"""Polygons with an outline: all that the drawings are made of.

Coordinates are x to the right and y down. Every curve is a polygon, so that one affine map turns,
mirrors and scales a whole drawing, and an outline is only a slightly larger polygon painted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2)


class Paint(Enum):
    """What a part is filled with: the object's own colour in some tone, or a fixed material."""

    BODY = auto()  # own colour and texture
    SHADE = auto()  # own colour, darker
    LIGHT = auto()  # own colour, lighter
    INK = auto()
    WHITE = auto()
    CREAM = auto()
    WOOD = auto()
    LEAF = auto()
    GLASS = auto()
    GOLD = auto()
    SHADOW = auto()  # half transparent; never part of the object's box


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A filled polygon `points` (N, 2); `outlined` parts get an ink rim."""

    points: Points
    paint: Paint
    outlined: bool = True


def polygon(*points: tuple[float, float]) -> Points:
    """The polygon through `points`, (N, 2)."""
    return np.array(points, dtype=np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """An axis-aligned rectangle, (4, 2)."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def arc(
    x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, turn: float = 0
) -> Points:
    """Part of an ellipse around (x, y) from `start` to `stop` degrees (0 right, 90 down), (N, 2).

    A whole ellipse by default; an open arc closes by its chord. `turn` rotates it, in degrees.
    """
    count = max(6, round(abs(stop - start) / 12))
    angles = np.radians(np.linspace(start, stop, count, endpoint=abs(stop - start) < 360))
    flat = np.stack([rx * np.cos(angles), ry * np.sin(angles)], axis=1)
    return flat @ rotation(turn) + (x, y)


def band(path: Points, width: float) -> Points:
    """A line of `width` along the open `path` (N, 2) as a polygon, (2N, 2)."""
    tangents = np.gradient(path, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
    normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=1) * (width / 2)
    return np.concatenate([path + normals, (path - normals)[::-1]])


def rotation(degrees: float) -> Points:
    """The (2, 2) matrix M for which `points @ M` turns clockwise as seen on the screen."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, s], [-s, c]])


def grow(points: Points, width: float) -> Points:
    """`points` (N, 2) moved outwards by `width`; sharp corners are cut at twice that."""
    following = np.roll(points, -1, axis=0)
    edges = following - points
    edges /= np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-9)
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    area = np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1])
    if area < 0:
        normals = -normals
    corner = normals + np.roll(normals, 1, axis=0)
    # |n1 + n2| = 2 cos(half angle): dividing by its square over 2 gives the mitre's length.
    length = np.sum(corner**2, axis=1, keepdims=True) / 2
    return points + corner / np.maximum(length, 0.5) * width


def bounds(polygons: Sequence[Points]) -> tuple[float, float, float, float]:
    """left, top, right, bottom of all `polygons` together."""
    everything = np.concatenate(list(polygons))
    (left, top), (right, bottom) = everything.min(axis=0), everything.max(axis=0)
    return float(left), float(top), float(right), float(bottom)
