"""Views: which part of a stored image is seen, and where boxes lie in it.

Drawn from sizes and boxes alone, before anything is decoded, so that the decoder can be asked for
no more pixels than needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, log, sqrt
from typing import TypeAlias

import numpy as np

from wholegrain.data.geometry import Warp, seen_after
from wholegrain.data.record import Box

Corners: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom
Placed: TypeAlias = tuple[float, float, float, float]  # cxcywh of the view

_LOG_ASPECT = log(4 / 3)
_CROP_ATTEMPTS = 10
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class View:
    """The part of the stored image that is seen, in its pixels, and what was done to it.

    ``flipped``: mirrored left to right. ``warps``: then moved so, one after the other; what leaves
    the frame between two of them is gone.
    """

    left: float
    top: float
    width: float
    height: float
    flipped: bool = False
    warps: tuple[Warp, ...] = ()

    def place(self, boxes: Sequence[Corners]) -> tuple[list[Placed], list[float]]:
        """Where boxes of the stored image lie in the view.

        Plain numbers, not tensors: a sample has a handful of boxes, for which each tensor operation
        would cost more than all of this.

        Args:
            boxes: left, top, right, bottom in pixels of the stored image.

        Returns:
            For each box its cxcywh in 0..1 of the view, clipped to it, and the share of its area
            that the view shows. After warps the box is the one that encloses what is seen.
        """
        placed: list[Placed] = []
        shares: list[float] = []
        for left, top, right, bottom in boxes:
            x1, x2 = (left - self.left) / self.width, (right - self.left) / self.width
            y1, y2 = (top - self.top) / self.height, (bottom - self.top) / self.height
            if self.flipped:
                x1, x2 = 1 - x2, 1 - x1
            if self.warps:
                (low, high, far, deep), share = seen_after((x1, y1, x2, y2), self.warps)
            else:
                low, far = min(max(x1, 0.0), 1.0), min(max(x2, 0.0), 1.0)
                high, deep = min(max(y1, 0.0), 1.0), min(max(y2, 0.0), 1.0)
                share = (far - low) * (deep - high) / max((x2 - x1) * (y2 - y1), _TINY)
            placed.append(((low + far) / 2, (high + deep) / 2, far - low, deep - high))
            shares.append(share)
        return placed, shares

    def moved(self, warps: tuple[Warp, ...]) -> View:
        """The same part, with other moves."""
        return View(self.left, self.top, self.width, self.height, self.flipped, warps)

    def min_side(self, width: int, height: int, resolution: int) -> int:
        """Pixels that the shorter side of the whole image needs for the view to fill R x R."""
        need = max(resolution / self.width, resolution / self.height)
        short = min(width, height)
        return min(short, ceil(short * need))


def corners_of(box: Box) -> Corners:
    """Left, top, right, bottom of a record's box."""
    x, y, width, height = box
    return x, y, x + width, y + height


def crop(
    width: int, height: int, anchor: Sequence[float] | None, scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random part that holds the anchor (xyxy) entirely.

    Its area is drawn from `scale`..1 of the image's, its sides are in the ratio 3:4 to 4:3, unless
    the anchor needs more.
    """
    area = width * height * rng.uniform(scale, 1.0)
    ratio = exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
    spans = (anchor[0::2], anchor[1::2]) if anchor is not None else (None, None)
    left, right = _span(sqrt(area * ratio), width, spans[0], rng)
    top, bottom = _span(sqrt(area / ratio), height, spans[1], rng)
    return left, top, right, bottom


def resized_crop(
    width: int, height: int, min_scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom as torchvision's RandomResizedCrop draws them.

    It draws up to ten times until the sides fit, then takes the largest central part of an admitted
    shape.
    """
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
        wide, high = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(rng.random() * (width - wide + 1))
            top = int(rng.random() * (height - high + 1))
            return left, top, left + wide, top + high
    wide, high = (
        min(width, max(1, round(height * 4 / 3))),
        min(height, max(1, round(width * 4 / 3))),
    )
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def open_crop(
    width: int, height: int, anchor: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom as X-VLM draws them: each edge uniform between the anchor's (xyxy)
    and the image's.
    """
    left, right = _open_span(anchor[0], anchor[2], width, rng)
    top, bottom = _open_span(anchor[1], anchor[3], height, rng)
    return left, top, right, bottom


def _span(
    wanted: float, limit: int, keep: Sequence[float] | None, rng: np.random.Generator
) -> tuple[int, int]:
    """A random interval of 0..limit, about `wanted` long, that holds the interval `keep`."""
    low, high = (floor(keep[0]), ceil(keep[1])) if keep is not None else (limit, 0)
    low, high = max(low, 0), min(high, limit)
    length = min(max(round(wanted), high - low, 1), limit)
    first, last = max(0, high - length), min(low, limit - length)
    start = first + int(rng.random() * (last - first + 1))
    return start, start + length


def _open_span(low: float, high: float, limit: int, rng: np.random.Generator) -> tuple[int, int]:
    """Ends drawn on either side of a box's interval, anywhere up to the image's edge."""
    first, last = max(0, floor(low)), min(limit, ceil(high))
    start = int(rng.random() * (first + 1))
    return start, last + int(rng.random() * (limit - last + 1))
