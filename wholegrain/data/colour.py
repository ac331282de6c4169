"""Colour operations on bytes.

The jitter is OpenCV's, on pixels. RandAugment's operations work on planes, uint8 (3, H, W), in
place and in whole numbers of 16 bits: a float copy of a photo takes longer to write than they do.
Sums may wrap around 16 bits on the way, as long as the result fits.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wholegrain.data.decode import Pixels

Planes: TypeAlias = NDArray[np.uint8]
Numbers: TypeAlias = NDArray[np.int16]

_held = threading.local()
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

# OpenCV's own threads do not survive a fork, and a loader has processes enough.
cv2.setNumThreads(0)


def jitter_colour(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Random brightness b, contrast c and saturation s, as one affine map of the colours:

        p' = b (c (s p + (1 - s) grey(p)) + (1 - c) mean grey)

    with each factor uniform in 1 - strength .. 1 + strength, of uint8 (H, W, 3); exact to one
    level. The result lasts until this thread's next call.
    """
    b, c, s = (1 + strength * (2 * rng.random(3) - 1)).tolist()
    mean = sum(w * level for w, level in zip(_LUMA, cv2.mean(pixels), strict=False))
    own, added = b * c * s, b * (1 - c) * mean
    red, green, blue = (b * c * (1 - s) * w for w in _LUMA)
    matrix = np.array(
        [
            [own + red, green, blue, added],
            [red, own + green, blue, added],
            [red, green, own + blue, added],
        ],
        dtype=np.float32,
    )
    cv2.transform(pixels, matrix, dst=(changed := _scratch(pixels.shape)))
    return changed


def _scratch(shape: tuple[int, ...]) -> Pixels:
    """Memory of a thread: pages new to the process would cost as much as the arithmetic."""
    held: Pixels | None = getattr(_held, "pixels", None)
    if held is None or held.shape != shape:
        held = _held.pixels = np.empty(shape, dtype=np.uint8)
    return held


def to_planes(pixels: Pixels, out: Planes | None = None) -> Planes:
    """(H, W, 3) as contiguous (3, H, W), in `out` or memory of its own."""
    planes = np.empty((3, *pixels.shape[:2]), dtype=np.uint8) if out is None else out
    cv2.split(pixels, list(planes))
    return planes


def brighten(planes: Planes, factor: float) -> None:
    """Multiplies all values by a factor of 0..2, rounded to a multiple of 1/128."""
    values = np.multiply(planes, np.uint16(round(factor * 128)), dtype=np.uint16)
    values >>= 7
    _clamp(values.view(np.int16), 0, 255)  # below 2^15, so the sign is right
    np.copyto(planes, values, casting="unsafe")


def autocontrast(planes: Planes) -> None:
    """Stretches each plane to 0..255."""
    for plane, low, high in zip(planes, *_extremes(planes), strict=True):
        if high > low and (low > 0 or high < 255):
            values = np.subtract(plane, low).astype(np.uint16)
            values *= 255
            np.copyto(plane, values // np.uint16(high - low), casting="unsafe")


def equalise(planes: Planes) -> None:
    """Gives each plane a flat histogram, as `PIL.ImageOps.equalize` does."""
    for plane in planes:
        rows, columns = plane.shape
        view = Image.frombuffer("L", (columns, rows), plane, "raw", "L", 0, 1)
        counts = np.array(view.histogram())
        step = int(counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        if step == 0:  # of one colour, or too few pixels for a step each
            continue
        below = counts.cumsum() - counts
        table = np.minimum((below + step // 2) // step, 255).astype(np.uint8)
        mapped = plane.tobytes().translate(table.tobytes())
        plane[...] = np.frombuffer(mapped, np.uint8).reshape(plane.shape)


def sharpen(planes: Planes, factor: float) -> None:
    """Moves each pixel away from the mean of its 3 x 3 neighbours (itself five times), which a
    factor of 0 gives and of 1 leaves alone; 2 is the most. The border stays as it is.
    """
    if planes.shape[1] < 3 or planes.shape[2] < 3:
        return
    values = planes.astype(np.uint16)
    rows = values[:, :-2] + values[:, 1:-1]
    rows += values[:, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth += rows[..., 2:]
    inner = values[:, 1:-1, 1:-1]
    smooth += inner << 2
    smooth += 6
    smooth //= 13
    # x + (factor - 1) (x - smooth), with 7 binary places
    away = (inner - smooth).view(np.int16)
    away *= np.int16(round((factor - 1) * 128))
    away += 64
    away >>= 7
    away += inner.view(np.int16)
    _clamp(away, 0, 255)
    np.copyto(planes[:, 1:-1, 1:-1], away, casting="unsafe")


def _clamp(values: Numbers, low: int, high: int) -> None:
    # torch's `clamp_` is ten times as fast as numpy's `minimum` and `maximum` on 16 bits.
    torch.from_numpy(values).clamp_(low, high)


def _extremes(planes: Planes) -> tuple[list[int], list[int]]:
    flat = planes.reshape(len(planes), -1)
    return flat.min(axis=1).tolist(), flat.max(axis=1).tolist()
