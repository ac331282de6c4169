"""Colour operations on planes of bytes, in place, in whole numbers of 16 bits.

A float copy of a photo takes longer to write than everything here together. All of them work on
uint8 (3, H, W), red, green and blue, contiguous. Sums may wrap around 16 bits on the way, as long
as the result fits; no operation's result depends on the processor.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Planes: TypeAlias = NDArray[np.uint8]
Numbers: TypeAlias = NDArray[np.int16]

_LUMA = (77, 150, 29)  # ITU-R BT.601 in 1/256: 0.299, 0.587, 0.114
_MEAN_STRIDE = 13  # odd, so that the pixels that stand for the mean come from all columns
_FINEST = 6  # binary places of a coefficient
_held = threading.local()


def jitter_colour(planes: Planes, strength: float, rng: np.random.Generator) -> None:
    """Random brightness b, contrast c and saturation s, as one affine map of the colours:

        p' = b (c (s p + (1 - s) grey(p)) + (1 - c) mean grey)

    with each factor uniform in 1 - strength .. 1 + strength, and b c and b c s rounded to a
    multiple of 1/64 or coarser (1/16 at strength 1).
    """
    b, c, s = (1 + strength * (2 * rng.random(3) - 1)).tolist()
    places, own, of_grey, added = _coefficients(b, c, s, _mean_grey(planes))
    values, grey = _scratch(planes.shape[1:])
    _grey_into(grey, planes, values)
    grey *= np.int16(of_grey)
    grey += np.int16(added)
    # A plane at a time: all that is touched then stays in a core's cache.
    for plane in planes:
        np.copyto(values, plane)
        values *= np.int16(own)
        values += grey
        _clamp(values, 0, (256 << places) - 1)
        values >>= places
        np.copyto(plane, values, casting="unsafe")


def _coefficients(b: float, c: float, s: float, mean: float) -> tuple[int, int, int, int]:
    """The map as ``p' = (own p + of_grey grey + added) / 2^places``, in whole numbers.

    `places` is as large as 16 bits allow whatever the pixels are. `added` holds half a unit for
    rounding, and half of `of_grey`, because the grey was cut off.
    """
    for places in range(_FINEST, -1, -1):
        unit = 1 << places
        own, both = round(b * c * s * unit), round(b * c * unit)
        of_grey = both - own
        added = round((b * unit - both) * mean + of_grey / 2) + unit // 2
        low = added + 255 * (min(own, 0) + min(of_grey, 0))
        high = added + 255 * (max(own, 0) + max(of_grey, 0))
        if low >= -(1 << 15) and high < 1 << 15:
            break
    return places, own, of_grey, added


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


def _mean_grey(planes: Planes) -> float:
    sample = planes.reshape(3, -1)[:, ::_MEAN_STRIDE]
    sums = sample.sum(axis=1, dtype=np.int64).tolist()
    return sum(w * total for w, total in zip(_LUMA, sums, strict=True)) / 256 / sample.shape[1]


def _grey_into(grey: Numbers, planes: Planes, spare: Numbers) -> None:
    """The luma (H, W) of planes, cut off; spoils `spare`."""
    np.copyto(grey, planes[0])
    grey *= np.int16(_LUMA[0])
    for plane, weight in zip(planes[1:], _LUMA[1:], strict=True):
        np.copyto(spare, plane)
        spare *= np.int16(weight)
        grey += spare
    unsigned = grey.view(np.uint16)  # the sum fits 16 bits without a sign
    unsigned >>= 8


def _scratch(shape: tuple[int, ...]) -> tuple[Numbers, Numbers]:
    """Memory of a thread, twice (H, W); new memory for each photo would cost half as much as the
    arithmetic.
    """
    held: tuple[Numbers, Numbers] | None = getattr(_held, "arrays", None)
    if held is None or held[0].shape != shape:
        held = _held.arrays = (np.empty(shape, np.int16), np.empty(shape, np.int16))
    return held


def _clamp(values: Numbers, low: int, high: int) -> None:
    # torch's `clamp_` is ten times as fast as numpy's `minimum` and `maximum` on 16 bits.
    torch.from_numpy(values).clamp_(low, high)


def _extremes(planes: Planes) -> tuple[list[int], list[int]]:
    flat = planes.reshape(len(planes), -1)
    return flat.min(axis=1).tolist(), flat.max(axis=1).tolist()
