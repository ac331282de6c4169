"""Who is in a scene and where: looks that share words, and places with mild overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from data_tools.scenes.config import COLOURS, MIN_OBJECTS, TEXTURES
from data_tools.scenes.kinds import KINDS
from data_tools.scenes.sprites import Look, Sprite

Box = tuple[float, float, float, float]

_TRIES: Final = 60
_REPEAT: Final = 0.62
"""Share of scenes in which one kind appears two or three times: these need more than a name."""
_OVERLAP: Final = 0.4
"""Share of scenes in which an object may stand in front of another."""
_MAX_LARGE: Final = 2


def choose_looks(rng: np.random.Generator, most: int) -> list[Look]:
    """3 to `most` looks, all different; often with a repeated kind and with shared colours."""
    count = int(rng.integers(MIN_OBJECTS, most + 1))
    kinds = [str(kind) for kind in rng.choice(list(KINDS), count, replace=False)]
    if rng.random() < _REPEAT:
        for k in range(1, int(rng.integers(2, min(3, count - 1) + 1))):
            kinds[k] = kinds[0]
    # Few colours in a scene, so that a colour alone often fits two objects.
    palette = [
        str(colour) for colour in rng.choice(list(COLOURS), max(2, count - 1), replace=False)
    ]
    looks: list[Look] = []
    for kind in kinds:
        while True:
            look = Look(
                kind,
                palette[rng.integers(len(palette))],
                TEXTURES[rng.choice(4, p=(0.46, 0.18, 0.18, 0.18))],
                _size(rng, looks, count),
            )
            if look not in looks:
                looks.append(look)
                break
    return looks


def _size(rng: np.random.Generator, looks: Sequence[Look], count: int) -> str:
    size = ("small", "medium", "large")[rng.choice(3, p=(0.3, 0.42, 0.28))]
    allowed = 1 if count > 4 else _MAX_LARGE
    crowded = size == "large" and sum(look.size == "large" for look in looks) >= allowed
    return "medium" if crowded else size


def place_sprites(
    sprites: Sequence[Sprite], side: int, rng: np.random.Generator
) -> list[tuple[int, int]] | None:
    """Top-left corner in whole pixels for each sprite, or None where no room was found.

    Objects keep clear of the picture's edge. Boxes keep a gap, except that in some scenes they may
    overlap by a fifth of the smaller one; what remains visible is checked by the caller.
    """
    overlap = 0.2 if rng.random() < _OVERLAP else 0.0
    gap = 0.012 * side
    taken: list[Box] = []
    corners: list[tuple[int, int]] = []
    for sprite in sprites:
        left, top, right, bottom = sprite.box
        for _ in range(_TRIES):
            x = int(rng.integers(np.ceil(1 - left), np.floor(side - 1 - right) + 1))
            y = int(rng.integers(np.ceil(1 - top), np.floor(side - 1 - bottom) + 1))
            box = (left + x, top + y, right + x, bottom + y)
            if all(_compatible(box, other, overlap, gap) for other in taken):
                taken.append(box)
                corners.append((x, y))
                break
        else:
            return None
    return corners


def _compatible(a: Box, b: Box, overlap: float, gap: float) -> bool:
    """Whether two xyxy boxes are `gap` apart, or overlap by at most that share of the smaller."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= -gap or height <= -gap:
        return True
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return overlap > 0 and max(width, 0.0) * max(height, 0.0) <= overlap * smaller
