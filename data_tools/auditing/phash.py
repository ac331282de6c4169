"""When two files show the same photo: a hash to find candidates, thumbnails to confirm them.

A photo is squeezed to 32 x 32 px. The signs of the 64 lowest frequencies of its brightness (DCT-II,
without the mean) are the hash: they survive re-encoding, resizing and a slight crop, and a mirrored
or turned photo has a hash that is computed from the same 1024 numbers. Photos whose hashes differ
in at most ``RADIUS`` bits are compared again, in colour, at 16 x 16 px: their correlation tells a
photo from another of like composition, their difference one sky from another.

On 7,806 distinct photos (30.5 million pairs) the hash alone matched 25 pairs within the radius and
the second comparison kept none; of 300 of them saved again (JPEG quality 30 to 95, WebP, half to
double size, both at once, 2 % cut off one side or all four) every copy was found. With 5 % cut off
one side it is 65 %, off all four 39 %: what is cropped harder, framed or written upon goes unseen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wholegrain.data.decode import decode_image

VERSION = 1
"""Counts up when equal photos would get other hashes: cached ones are then made anew."""
RADIUS = 11
"""Bits in which the hashes of one photo may differ."""
MIN_CORRELATION = 0.9
"""Of the two thumbnails, each with its own mean and contrast taken out."""
MAX_DIFFERENCE = 16.0
"""Mean absolute difference of the two thumbnails, of 255."""
MIN_CONTRAST = 3.0
"""Standard deviation of brightness, of 255, below which a photo is flat: it shows nothing that
could be told from another flat one. The flattest of the 7,806 photos has 9."""

SIDE = 32
THUMBNAIL = 16
_DECODED_SIDE = 2 * SIDE
_LUMA = np.array([0.299, 0.587, 0.114])

Thumbnail = NDArray[np.uint8]
Turn = Callable[[NDArray], NDArray]

TURNS: dict[str, Turn] = {
    "as it is": lambda pixels: pixels,
    "mirrored": lambda pixels: np.flip(pixels, axis=-2),
    # A camera's orientation, which one copy has applied and the other only notes in its EXIF.
    "turned by 90": lambda pixels: np.rot90(pixels, 1, axes=(-3, -2)),
    "turned by 180": lambda pixels: np.rot90(pixels, 2, axes=(-3, -2)),
    "turned by 270": lambda pixels: np.rot90(pixels, 3, axes=(-3, -2)),
}
"""How a copy may lie: name to what is done to pixels (..., height, width, 3)."""


def _dct_matrix() -> NDArray[np.float64]:
    steps = np.arange(SIDE)
    return np.cos(np.pi * (2 * steps[None, :] + 1) * steps[:, None] / (2 * SIDE))


def _frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The 64 lowest pairs of frequencies but the mean, dealt out to the hash's four bands in turn.

    Neighbouring frequencies are alike from photo to photo; each band should hold something of all.
    """
    pairs = sorted(
        ((down, across) for down in range(SIDE) for across in range(SIDE)),
        key=lambda pair: (sum(pair), pair),
    )[1:65]
    dealt = np.array([pair for band in range(4) for pair in pairs[band::4]])
    return dealt[:, 0], dealt[:, 1]


_DCT = _dct_matrix()
_DOWN, _ACROSS = _frequencies()


def squeezed(data: bytes, where: str) -> NDArray[np.uint8]:
    """An encoded photo as (32, 32, 3); ImageError if it cannot be decoded."""
    pixels = decode_image(data, where, min_side=_DECODED_SIDE).pixels
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def thumbnails(squeezed: NDArray[np.uint8]) -> Thumbnail:
    """(..., 32, 32, 3) to (..., 16, 16, 3)."""
    step = SIDE // THUMBNAIL
    parts = squeezed.reshape(*squeezed.shape[:-3], THUMBNAIL, step, THUMBNAIL, step, 3)
    return np.rint(parts.mean(axis=(-4, -2))).astype(np.uint8)


def hashes(squeezed: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hashes (N,) of photos (N, 32, 32, 3), and which of them are flat."""
    light = squeezed @ _LUMA
    flat = light.std(axis=(1, 2)) < MIN_CONTRAST
    waves = _DCT @ light @ _DCT.T
    bits = waves[:, _DOWN, _ACROSS] > 0
    packed = np.ascontiguousarray(np.packbits(bits, axis=1))
    return packed.view(np.uint64)[:, 0], flat


def difference(one: Thumbnail, other: Thumbnail) -> float | None:
    """Mean absolute difference (of 255) of two thumbnails of the same photo; None if they are not.

    Not the same: too far apart, or too little correlated.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    apart = float(np.abs(a - b).mean())
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if apart > MAX_DIFFERENCE or spread == 0.0 or float((a * b).sum()) < MIN_CORRELATION * spread:
        return None
    return apart
