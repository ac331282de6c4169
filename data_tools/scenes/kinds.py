"""The drawings: every kind of object as a list of polygons, back to front.

Each drawing is made in a loose unit square; `DRAWINGS` holds them centred at the origin and scaled
so that the geometric mean of the box's sides is 1. The box's sides differ by at most a factor of
about 1.6, so that no object is a sliver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from data_tools.scenes.shapes import (
    Paint,
    Part,
    Points,
    arc,
    band,
    bounds,
    grow,
    polygon,
    rectangle,
)

RIM: Final = 0.035
"""Width of the ink rim as a share of the object's size."""

BODY, SHADE, LIGHT, INK = Paint.BODY, Paint.SHADE, Paint.LIGHT, Paint.INK
WHITE, CREAM, WOOD, LEAF = Paint.WHITE, Paint.CREAM, Paint.WOOD, Paint.LEAF
GLASS, GOLD = Paint.GLASS, Paint.GOLD


def _eye(x: float, y: float, r: float) -> list[Part]:
    return [
        Part(arc(x, y, r, r), WHITE, outlined=False),
        Part(arc(x + r * 0.25, y, r * 0.6, r * 0.6), INK, outlined=False),
    ]


def _ball() -> list[Part]:
    return [
        Part(arc(0.5, 0.5, 0.5, 0.5), BODY),
        Part(arc(0.32, 0.27, 0.13, 0.08, turn=-35), WHITE, outlined=False),
    ]


def _box() -> list[Part]:
    return [
        Part(polygon((0.74, 0.3), (1, 0.06), (1, 0.74), (0.74, 1)), SHADE),
        Part(polygon((0, 0.3), (0.26, 0.06), (1, 0.06), (0.74, 0.3)), LIGHT),
        Part(rectangle(0, 0.3, 0.74, 1), BODY),
    ]


def _star() -> list[Part]:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.52, 0.25)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1) + 0.5
    return [Part(points, BODY), *_eye(0.42, 0.47, 0.05), *_eye(0.58, 0.47, 0.05)]


def _house() -> list[Part]:
    return [
        Part(rectangle(0.7, 0.08, 0.84, 0.4), WOOD),
        Part(rectangle(0.1, 0.42, 0.9, 1), BODY),
        Part(polygon((-0.02, 0.47), (0.5, 0), (1.02, 0.47)), SHADE),
        Part(rectangle(0.54, 0.6, 0.76, 1), WOOD),
        Part(rectangle(0.22, 0.58, 0.43, 0.79), GLASS),
    ]


def _tree() -> list[Part]:
    return [
        Part(rectangle(0.4, 0.75, 0.6, 1.05), WOOD),
        Part(polygon((0.04, 0.84), (0.5, 0.36), (0.96, 0.84)), BODY),
        Part(polygon((0.12, 0.6), (0.5, 0.17), (0.88, 0.6)), BODY),
        Part(polygon((0.2, 0.36), (0.5, -0.05), (0.8, 0.36)), BODY),
    ]


def _car() -> list[Part]:
    wheels = [
        part
        for x in (0.24, 0.78)
        for part in (
            Part(arc(x, 0.6, 0.13, 0.13), INK),
            Part(arc(x, 0.6, 0.055, 0.055), WHITE, outlined=False),
        )
    ]
    cabin = polygon((0.2, 0.3), (0.32, 0), (0.66, 0), (0.82, 0.3))
    shell = polygon((0, 0.34), (0.08, 0.26), (0.9, 0.26), (1, 0.38), (1, 0.6), (0, 0.6))
    return [
        Part(cabin, BODY),
        Part(shell, BODY),
        Part(polygon((0.29, 0.27), (0.36, 0.06), (0.48, 0.06), (0.48, 0.27)), GLASS, False),
        Part(polygon((0.53, 0.27), (0.53, 0.06), (0.63, 0.06), (0.73, 0.27)), GLASS, False),
        Part(arc(0.95, 0.42, 0.04, 0.05), GOLD, outlined=False),
        *wheels,
    ]


def _cup() -> list[Part]:
    handle = arc(0.76, 0.5, 0.22, 0.23, -95, 95)
    return [
        Part(band(handle, 0.1), SHADE),
        Part(polygon((0, 0.08), (0.78, 0.08), (0.66, 1), (0.12, 1)), BODY),
        Part(arc(0.39, 0.09, 0.39, 0.1), WOOD),
    ]


def _fish() -> list[Part]:
    return [
        Part(polygon((0.74, 0.35), (1.02, 0.08), (0.96, 0.35), (1.02, 0.62)), SHADE),
        Part(polygon((0.28, 0.12), (0.5, -0.08), (0.64, 0.14)), SHADE),
        Part(arc(0.41, 0.35, 0.41, 0.29), BODY),
        Part(polygon((0.42, 0.4), (0.6, 0.33), (0.58, 0.54)), SHADE),
        *_eye(0.18, 0.29, 0.065),
    ]


def _flower() -> list[Part]:
    petals = [
        Part(arc(0.5 + 0.24 * np.cos(a), 0.33 + 0.24 * np.sin(a), 0.19, 0.19), BODY)
        for a in np.radians(np.arange(6) * 60 + 30)
    ]
    return [
        Part(rectangle(0.46, 0.5, 0.54, 1.08), LEAF),
        Part(arc(0.66, 0.88, 0.18, 0.08, turn=-30), LEAF),
        Part(arc(0.34, 0.94, 0.18, 0.08, turn=30), LEAF),
        *petals,
        Part(arc(0.5, 0.33, 0.15, 0.15), GOLD),
    ]


def _hat() -> list[Part]:
    return [
        Part(arc(0.5, 0.78, 0.5, 0.15), BODY),
        Part(polygon((0.22, 0.06), (0.78, 0.06), (0.72, 0.78), (0.28, 0.78)), BODY),
        Part(polygon((0.26, 0.56), (0.74, 0.56), (0.725, 0.76), (0.275, 0.76)), SHADE, False),
        Part(arc(0.5, 0.07, 0.28, 0.07), LIGHT),
    ]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [
        Part(np.stack([x, -y], axis=1) / 32, BODY),
        Part(arc(-0.26, -0.2, 0.09, 0.055, turn=-40), WHITE, outlined=False),
    ]


def _mushroom() -> list[Part]:
    return [
        Part(polygon((0.36, 0.45), (0.64, 0.45), (0.7, 0.95), (0.3, 0.95)), CREAM),
        Part(arc(0.5, 0.5, 0.5, 0.1), SHADE),
        Part(arc(0.5, 0.5, 0.5, 0.48, 180, 360), BODY),
    ]


def _boat() -> list[Part]:
    return [
        Part(rectangle(0.45, 0, 0.51, 0.7), WOOD),
        Part(polygon((0.54, 0.03), (0.95, 0.58), (0.54, 0.58)), BODY),
        Part(polygon((0.42, 0.14), (0.42, 0.58), (0.1, 0.58)), WHITE),
        Part(polygon((0, 0.66), (1, 0.66), (0.82, 0.95), (0.18, 0.95)), BODY),
    ]


def _umbrella() -> list[Part]:
    scallops = [arc(x, 0.5, 0.125, 0.06, 360, 180) for x in (0.875, 0.625, 0.375, 0.125)]
    canopy = np.concatenate([arc(0.5, 0.5, 0.5, 0.47, 180, 360), *scallops])
    hook = np.concatenate([polygon((0.5, 0.4), (0.5, 0.9)), arc(0.42, 0.92, 0.08, 0.09, 0, 180)])
    return [
        Part(band(hook, 0.055), WOOD),
        Part(canopy, BODY),
        Part(polygon((0.48, 0.04), (0.5, -0.04), (0.52, 0.04)), INK),
    ]


def _balloon() -> list[Part]:
    y = np.linspace(0.76, 1.1, 9)
    string = np.stack([0.5 + 0.05 * np.sin((y - 0.76) * 18), y], axis=1)
    return [
        Part(band(string, 0.03), INK, outlined=False),
        Part(polygon((0.5, 0.68), (0.58, 0.8), (0.42, 0.8)), SHADE),
        Part(arc(0.5, 0.36, 0.35, 0.39), BODY),
        Part(arc(0.38, 0.19, 0.09, 0.055, turn=-40), WHITE, outlined=False),
    ]


def _apple() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    # Two dents, a deep one at the top and a shallow one at the bottom.
    r = 0.46 - 0.13 * np.exp(-((t - 1.5 * np.pi) ** 2) / 0.18)
    r -= 0.06 * np.exp(-((t - 0.5 * np.pi) ** 2) / 0.1)
    return [
        Part(np.stack([0.5 + 1.08 * r * np.cos(t), 0.6 + r * np.sin(t)], axis=1), BODY),
        Part(band(polygon((0.5, 0.34), (0.52, 0.2), (0.57, 0.08)), 0.06), WOOD),
        Part(arc(0.74, 0.14, 0.17, 0.08, turn=-25), LEAF),
    ]


def _bird() -> list[Part]:
    return [
        Part(rectangle(0.44, 0.68, 0.475, 0.92), GOLD, outlined=False),
        Part(rectangle(0.57, 0.68, 0.605, 0.92), GOLD, outlined=False),
        Part(polygon((0.7, 0.42), (1.06, 0.26), (1.02, 0.5), (0.76, 0.6)), SHADE),
        Part(polygon((0.06, 0.19), (-0.1, 0.28), (0.08, 0.34)), GOLD),
        Part(arc(0.52, 0.52, 0.32, 0.23), BODY),
        Part(arc(0.24, 0.26, 0.21, 0.2), BODY),
        Part(arc(0.6, 0.5, 0.2, 0.12, turn=-15), SHADE),
        *_eye(0.17, 0.22, 0.055),
    ]


def _cat() -> list[Part]:
    tail = arc(0.72, 0.78, 0.22, 0.22, 90, -60)
    whiskers = [
        Part(band(polygon((0.42 + s * 0.12, 0.38), (0.42 + s * 0.34, y)), 0.02), INK, False)
        for s in (-1, 1)
        for y in (0.34, 0.42)
    ]
    return [
        Part(band(tail, 0.1), SHADE),
        Part(arc(0.42, 0.8, 0.29, 0.29), BODY),
        Part(polygon((0.12, 0.3), (0.13, -0.02), (0.4, 0.14)), BODY),
        Part(polygon((0.72, 0.3), (0.71, -0.02), (0.44, 0.14)), BODY),
        Part(arc(0.42, 0.32, 0.32, 0.26), BODY),
        *_eye(0.3, 0.27, 0.06),
        *_eye(0.54, 0.27, 0.06),
        Part(polygon((0.37, 0.37), (0.47, 0.37), (0.42, 0.43)), INK, outlined=False),
        *whiskers,
    ]


def _rocket() -> list[Part]:
    left = arc(0.72, 0.5, 0.46, 0.55, 128, 240)
    right = arc(0.28, 0.5, 0.46, 0.55, -60, 52)
    return [
        Part(polygon((0.38, 0.86), (0.5, 1.14), (0.62, 0.86)), GOLD),
        Part(polygon((0.3, 0.55), (0.06, 0.98), (0.4, 0.86)), SHADE),
        Part(polygon((0.7, 0.55), (0.94, 0.98), (0.6, 0.86)), SHADE),
        Part(np.concatenate([left, right]), BODY),
        Part(arc(0.5, 0.38, 0.1, 0.1), GLASS),
    ]


def _butterfly() -> list[Part]:
    wings = [
        Part(arc(0.5 + s * 0.25, y, rx, ry, turn=s * turn), paint)
        for s in (-1, 1)
        for y, rx, ry, turn, paint in ((0.62, 0.22, 0.17, 40, SHADE), (0.3, 0.28, 0.2, -35, BODY))
    ]
    feelers = [
        Part(band(polygon((0.5, 0.2), (0.5 + s * 0.12, 0)), 0.025), INK, outlined=False)
        for s in (-1, 1)
    ]
    return [*feelers, *wings, Part(arc(0.5, 0.45, 0.06, 0.28), INK, outlined=False)]


def _bell() -> list[Part]:
    side = polygon((0.34, 0.18), (0.26, 0.5), (0.18, 0.72), (0.02, 0.88))
    mirrored = side[::-1] * (-1, 1) + (1, 0)
    crown = arc(0.5, 0.2, 0.17, 0.14, 200, 340)
    return [
        Part(arc(0.5, 0.04, 0.07, 0.07), GOLD),
        Part(arc(0.5, 0.92, 0.12, 0.1), GOLD),
        Part(np.concatenate([side[::-1], crown, mirrored[::-1]]), BODY),
        Part(rectangle(0.06, 0.8, 0.94, 0.88), SHADE, outlined=False),
    ]


def _snail() -> list[Part]:
    t = np.linspace(0.5, 4.2 * np.pi, 40)
    spiral = np.stack([0.62 + 0.021 * t * np.cos(t), 0.38 + 0.021 * t * np.sin(t)], axis=1)
    foot = polygon((0.0, 0.42), (0.1, 0.3), (0.22, 0.36), (0.3, 0.58), (1.06, 0.74), (0.1, 0.76))
    feelers = [Part(band(polygon((0.1, 0.36), (x, 0.12)), 0.035), CREAM) for x in (0.02, 0.2)]
    return [
        *feelers,
        Part(foot, CREAM),
        Part(arc(0.62, 0.38, 0.36, 0.36), BODY),
        Part(band(spiral, 0.035), SHADE, outlined=False),
        *_eye(0.1, 0.45, 0.045),
    ]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of object is called and drawn."""

    plural: str
    draw: Callable[[], list[Part]]
    stands: bool = True
    """Whether it casts a shadow on the ground under it."""


KINDS: Final[dict[str, Kind]] = {
    "apple": Kind("apples", _apple),
    "ball": Kind("balls", _ball),
    "balloon": Kind("balloons", _balloon, stands=False),
    "bell": Kind("bells", _bell),
    "bird": Kind("birds", _bird),
    "boat": Kind("boats", _boat),
    "box": Kind("boxes", _box),
    "butterfly": Kind("butterflies", _butterfly, stands=False),
    "car": Kind("cars", _car),
    "cat": Kind("cats", _cat),
    "cup": Kind("cups", _cup),
    "fish": Kind("fish", _fish, stands=False),
    "flower": Kind("flowers", _flower),
    "hat": Kind("hats", _hat),
    "heart": Kind("hearts", _heart, stands=False),
    "house": Kind("houses", _house),
    "mushroom": Kind("mushrooms", _mushroom),
    "rocket": Kind("rockets", _rocket, stands=False),
    "snail": Kind("snails", _snail),
    "star": Kind("stars", _star, stands=False),
    "tree": Kind("trees", _tree),
    "umbrella": Kind("umbrellas", _umbrella),
}
"""Singular word -> kind, in the order of the category ids (from 1); append only."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """All polygons of a kind in painting order, ready to be mapped by one affine transform.

    `points` (N, 2) holds them end to end; polygon k is points[starts[k]:starts[k + 1]] and is
    filled with `paints[k]`.
    """

    points: Points
    starts: tuple[int, ...]
    paints: tuple[Paint, ...]

    def polygons(self, points: Points) -> list[list[tuple[float, float]]]:
        """The polygons' corners, given the transformed `points` (N, 2)."""
        corners = [(x, y) for x, y in points.tolist()]
        return [corners[a:b] for a, b in itertools.pairwise(self.starts)]


def _compile(kind: Kind) -> Drawing:
    """Centre and scale a drawing, and spell out its rims and its shadow as polygons."""
    parts = kind.draw()
    left, top, right, bottom = bounds([part.points for part in parts])
    scale = float(np.sqrt((right - left) * (bottom - top))) * (1 + 2 * RIM)
    centre = ((left + right) / 2, (top + bottom) / 2)
    layers: list[tuple[Points, Paint]] = []
    if kind.stands:
        half, foot = (right - left) / scale / 2, (bottom - top) / scale / 2
        layers.append((arc(0.04, foot, half, 0.085), Paint.SHADOW))
    for part in parts:
        points = (part.points - centre) / scale
        if part.outlined:
            layers.append((grow(points, RIM), INK))
        layers.append((points, part.paint))
    starts = np.cumsum([0, *(len(points) for points, _ in layers)])
    return Drawing(
        np.concatenate([points for points, _ in layers]),
        tuple(int(start) for start in starts),
        tuple(paint for _, paint in layers),
    )


DRAWINGS: Final[dict[str, Drawing]] = {name: _compile(kind) for name, kind in KINDS.items()}
