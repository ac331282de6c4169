"""How an answer is compared with the truth.

Two protocols exist for a phrase that owns several boxes ("three men"): *merged*, where the truth is
the box that encloses them all, and *any*, where meeting one of them is enough. They differ by
points on Flickr30k Entities, so both are always reported; with one box they are equal.

A hit is IoU >= t, in float64, on the pixels of the stored image. Nothing is rounded, clipped or
taken to be inclusive of its last pixel on the way there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wholegrain import boxes as convert

Array = NDArray[np.float64]
Corners = tuple[float, float, float, float]

PROTOCOLS = ("merged", "any")

_CONVENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "xyxy_pixels": lambda box, w, h: box,
    "xywh_pixels": lambda box, w, h: convert.xywh_to_xyxy(box),
    "cxcywh_unit": lambda box, w, h: convert.denormalise(convert.cxcywh_to_xyxy(box), w, h),
    "xyxy_unit": convert.denormalise,
    "xyxy_1000": lambda box, w, h: convert.denormalise(box / 1000.0, w, h),
}
CONVENTIONS = tuple(_CONVENTIONS)


def to_pixels(boxes: Array, convention: str, widths: Array, heights: Array) -> Array:
    """Boxes (E, 4) of a named convention as xyxy pixels (E, 4) of images of these sizes (E,).

    ``xyxy_1000`` is the 0 to 1000 grid of many language models. Rows of NaN (no answer) stay NaN.

    Raises:
        ValueError: the convention is not one of `CONVENTIONS`.
    """
    if convention not in _CONVENTIONS:
        raise ValueError(f"unknown box convention {convention!r}; use one of {CONVENTIONS}")
    tensors = [torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (boxes, widths, heights)]
    return _CONVENTIONS[convention](*tensors).numpy()


def merged_iou(predicted: Array, truth: Array) -> Array:
    """IoU (E,) of each answer (E, 4) with its enclosing true box (E, 4), both xyxy pixels.

    An answer that is missing (NaN) or inverted (x2 <= x1 or y2 <= y1) has IoU 0: it is a miss, and
    is counted as one.
    """
    answers = torch.from_numpy(np.asarray(predicted, dtype=np.float64))
    found = convert.iou(answers, torch.from_numpy(np.asarray(truth, dtype=np.float64)))
    return np.where(unusable(predicted), 0.0, found.numpy())


def any_iou(predicted: Array, truths: Sequence[Sequence[Corners]]) -> Array:
    """IoU (E,) of each answer (E, 4) with the true box that it meets best, xyxy pixels.

    Args:
        predicted: (E, 4), as for `merged_iou`.
        truths: for each answer its true boxes, at least one.
    """
    counts = np.array([len(boxes) for boxes in truths], dtype=np.int64)
    if not len(counts):
        return np.zeros(0)
    flat = np.array([box for boxes in truths for box in boxes], dtype=np.float64)
    each = merged_iou(np.repeat(predicted, counts, axis=0), flat)
    return np.maximum.reduceat(each, np.cumsum(counts) - counts)


def unusable(predicted: Array) -> NDArray[np.bool_]:
    """Which answers (E, 4) are no box: not finite, or without area."""
    sides = predicted[:, 2:] - predicted[:, :2]
    sound = np.isfinite(predicted) & np.tile(sides > 0, 2)
    return ~np.asarray(sound.all(axis=1))
