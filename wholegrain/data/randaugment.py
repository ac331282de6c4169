"""RandAugment as X-VLM uses it: a few random operations, each applied half of the time.

Cubuk et al. 2020. Ten operations for images without boxes; the five that move nothing for images
with boxes, since a sheared or rotated box is no box.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, radians, sin

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from wholegrain.data.decode import Pixels

_GREY = (128, 128, 128)  # what comes into the picture from outside
_APPLIED = 0.5

Operation = Callable[[Image.Image, float, int], Image.Image]  # image, strength 0..1, sign


def rand_augment(
    pixels: Pixels, count: int, magnitude: int, still: bool, rng: np.random.Generator
) -> Pixels:
    """Applies `count` operations drawn with replacement, each with probability 0.5.

    Args:
        pixels: uint8 (h, w, 3).
        magnitude: 0..10; at 7 colours are enhanced by 1.36, angles reach 21 degrees, shears 0.21,
            shifts 7 of 224 pixels.
        still: only operations that leave everything at its place.
    """
    names = _STILL if still else _ALL
    image: Image.Image | None = None
    for name, chance, side in rng.random((count, 3)).tolist():
        if chance >= _APPLIED:
            continue
        operation = _OPERATIONS[names[int(name * len(names))]]
        image = Image.fromarray(np.ascontiguousarray(pixels)) if image is None else image
        image = operation(image, magnitude / 10, 1 if side < 0.5 else -1)
    return pixels if image is None else np.array(image)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(image: Image.Image, strength: float, sign: int) -> Image.Image:
        return kind(image).enhance(1.8 * strength + 0.1)

    return operation


def _affine(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Operation:
    """`matrix` maps (signed strength, width, height) to Pillow's six output-to-input numbers."""

    def operation(image: Image.Image, strength: float, sign: int) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix(sign * strength, *image.size),
            resample=Image.Resampling.BILINEAR,
            fillcolor=_GREY,
        )

    return operation


def _rotation(strength: float, width: int, height: int) -> tuple[float, ...]:
    angle = radians(30 * strength)
    c, s, x, y = cos(angle), sin(angle), width / 2, height / 2
    return (c, s, x - c * x - s * y, -s, c, y + s * x - c * y)


_OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda s, w, h: (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": _affine(lambda s, w, h: (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": _affine(lambda s, w, h: (1, 0, s * 10 / 224 * w, 0, 1, 0)),
    "translate_y": _affine(lambda s, w, h: (1, 0, 0, 0, 1, s * 10 / 224 * h)),
    "rotate": _affine(_rotation),
}
_ALL = tuple(_OPERATIONS)
_STILL = _ALL[:5]
