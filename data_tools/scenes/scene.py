"""One scene: a pure function of its key and of how it is painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.scenes.backdrop import PLACES, paint_backdrop
from data_tools.scenes.config import MIN_VISIBLE, SPLITS, SceneConfig
from data_tools.scenes.layout import choose_looks, place_sprites
from data_tools.scenes.sprites import SUPERSAMPLE, Look, Sprite, mask_box, paint_sprite

_ATTEMPTS: Final = 200


@dataclass(frozen=True, slots=True)
class Thing:
    """An object in a scene."""

    look: Look
    box: tuple[float, float, float, float]
    """xywh in pixels, tight around what is visible of it."""
    area: float
    """Visible area in square pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A rendered picture with what is in it, back to front."""

    image: Image.Image
    place: str
    things: tuple[Thing, ...]


def scene_rng(seed: int, split: str, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one scene: independent of all other scenes, splits and streams."""
    return np.random.default_rng((seed, SPLITS.index(split), index, stream))


def render_scene(config: SceneConfig, split: str, index: int) -> Scene:
    """Scene `index` of `split`."""
    rng, size = scene_rng(config.seed, split, index), config.size
    side = round(size * config.zoom)  # of the picture in which a sprite would be of usual size
    for _ in range(_ATTEMPTS):
        sprites: list[tuple[Look, Sprite]] = [
            (look, paint_sprite(look, side, rng)) for look in choose_looks(rng, config.objects)
        ]
        # Larger ones stand behind, and find room first.
        sprites.sort(key=lambda pair: -pair[1].mask.size)
        corners = place_sprites([sprite for _, sprite in sprites], size, rng)
        if corners is None:
            continue
        visible = _visible([sprite.mask for _, sprite in sprites], corners)
        if visible is None:
            continue
        place = str(rng.choice(list(PLACES)))
        image = paint_backdrop(place, size, rng)
        for (_, sprite), corner in zip(sprites, corners, strict=True):
            image.paste(sprite.image, corner, sprite.image)
        things = tuple(
            _thing(look, mask, corner)
            for (look, _), mask, corner in zip(sprites, visible, corners, strict=True)
        )
        return Scene(image, place, things)
    raise RuntimeError(f"no layout found for scene {index} of {split} of {config}")


def _thing(look: Look, mask: NDArray[np.bool_], corner: tuple[int, int]) -> Thing:
    left, top, right, bottom = mask_box(mask)
    box = (left + corner[0], top + corner[1], right - left, bottom - top)
    return Thing(look, box, float(mask.sum()) / SUPERSAMPLE**2)


def _visible(
    masks: list[NDArray[np.bool_]], corners: list[tuple[int, int]]
) -> list[NDArray[np.bool_]] | None:
    """The masks less what later ones cover; None where too little of one is left."""
    result: list[NDArray[np.bool_]] = []
    for k, (mask, (x, y)) in enumerate(zip(masks, corners, strict=True)):
        left = mask.copy()
        for front, (fx, fy) in zip(masks[k + 1 :], corners[k + 1 :], strict=True):
            dx, dy = (fx - x) * SUPERSAMPLE, (fy - y) * SUPERSAMPLE
            rows = slice(max(0, dy), max(0, min(left.shape[0], dy + front.shape[0])))
            columns = slice(max(0, dx), max(0, min(left.shape[1], dx + front.shape[1])))
            covered = left[rows, columns]
            covered &= ~front[
                rows.start - dy : rows.start - dy + covered.shape[0],
                columns.start - dx : columns.start - dx + covered.shape[1],
            ]
        if left.sum() < MIN_VISIBLE * mask.sum():
            return None
        result.append(left)
    return result
