"""Augmentation written for reading: the slow reference of what `wholegrain.data` does fast.

Pillow's own operations, and float arithmetic. Pictures are uint8 (3, H, W) as there.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from wholegrain.data.geometry import Warp

LUMA = np.array([0.299, 0.587, 0.114])
MARGIN = 48  # more than any operation moves beyond, plus a pixel


def to_image(planes: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def to_planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def painted(name: str, planes: np.ndarray, magnitude: int) -> np.ndarray:
    """RandAugment's operations that move nothing."""
    image, factor = to_image(planes), 0.18 * magnitude + 0.1
    match name:
        case "autocontrast":
            image = ImageOps.autocontrast(image)
        case "equalize":
            image = ImageOps.equalize(image)
        case "brightness":
            image = ImageEnhance.Brightness(image).enhance(factor)
        case "sharpness":
            image = ImageEnhance.Sharpness(image).enhance(factor)
    return to_planes(image)


def moved(planes: np.ndarray, warp: Warp) -> np.ndarray:
    """The picture in a wide frame of grey, through Pillow's bilinear transform."""
    _, height, width = planes.shape
    pad = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
    framed = to_image(np.pad(planes, pad, constant_values=128))
    back = warp.inverse()
    # From unit squares to pixels of the framed picture.
    a, b, d, e = back.a, back.b * width / height, back.d * height / width, back.e
    c = back.c * width + MARGIN - a * MARGIN - b * MARGIN
    f = back.f * height + MARGIN - d * MARGIN - e * MARGIN
    done = framed.transform(
        framed.size,
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        resample=Image.Resampling.BILINEAR,
        fillcolor=(128, 128, 128),
    )
    return to_planes(done)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def jittered(planes: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The stated equation, float (3, H, W)."""
    b, c, s = 1 + strength * (2 * rng.random(3) - 1)
    values = planes.astype(float)
    grey = np.tensordot(LUMA, values, 1)
    return np.clip(b * (c * (s * values + (1 - s) * grey) + (1 - c) * grey.mean()), 0, 255)


def photo(seed: int, height: int = 96, width: int = 96) -> np.ndarray:
    """Soft patches with fine noise: all greys, and edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    noisy = np.asarray(soft).astype(int) + rng.integers(-20, 21, (height, width, 3))
    return np.ascontiguousarray(np.clip(noisy, 0, 255).astype(np.uint8).transpose(2, 0, 1))
