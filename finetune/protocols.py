"""How an answer is compared with the truth.

Two protocols exist for a phrase that owns several boxes ("three men"): *merged*, where the truth is
the box that encloses them all, and *any*, where meeting one of them is enough. They differ by
points on Flickr30k Entities, so both are always reported; with one box they are equal.

A hit is IoU >= t, in float64, on the pixels of the stored image. Nothing is rounded, clipped or
taken to be inclusive of its last pixel on the way there.

The evaluator of MDETR, and gRefCOCO's after it, ask for *GIoU* >= t instead. GIoU is never above
IoU, so their figures are lower and cannot be set beside others; to compare with them, evaluate with
``overlap="giou"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wholegrain import boxes as convert

Array = NDArray[np.float64]
Corners = tuple[float, float, float, float]
Overlap = Literal["iou", "giou"]

PROTOCOLS = ("merged", "any")
OVERLAPS: tuple[Overlap, ...] = ("iou", "giou")

_MEASURES: dict[Overlap, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "iou": (convert.iou, 0.0),
    "giou": (convert.generalized_iou, -1.0),
}


def merged_overlap(predicted: Array, truth: Array, overlap: Overlap = "iou") -> Array:
    """Overlap (E,) of each answer (E, 4) with its enclosing true box (E, 4), both xyxy pixels.

    An answer that is missing (NaN) or inverted (x2 <= x1 or y2 <= y1) has the least overlap there
    is, IoU 0 or GIoU -1: it is a miss, and is counted as one.
    """
    measure, least = _MEASURES[overlap]
    answers = torch.from_numpy(np.asarray(predicted, dtype=np.float64))
    found = measure(answers, torch.from_numpy(np.asarray(truth, dtype=np.float64))).numpy()
    # Of equal boxes, the enclosing area less the union may come out a rounding error below zero.
    return np.where(unusable(predicted), least, np.minimum(found, 1.0))


def any_overlap(
    predicted: Array, truths: Sequence[Sequence[Corners]], overlap: Overlap = "iou"
) -> Array:
    """Overlap (E,) of each answer (E, 4) with the true box that it meets best, xyxy pixels.

    Args:
        predicted: (E, 4), as for `merged_overlap`.
        truths: for each answer its true boxes, at least one.
        overlap: ``iou`` or ``giou``.
    """
    counts = np.array([len(boxes) for boxes in truths], dtype=np.int64)
    if not len(counts):
        return np.zeros(0)
    flat = np.array([box for boxes in truths for box in boxes], dtype=np.float64)
    each = merged_overlap(np.repeat(predicted, counts, axis=0), flat, overlap)
    return np.maximum.reduceat(each, np.cumsum(counts) - counts)


def merged_iou(predicted: Array, truth: Array) -> Array:
    """`merged_overlap` as IoU."""
    return merged_overlap(predicted, truth)


def any_iou(predicted: Array, truths: Sequence[Sequence[Corners]]) -> Array:
    """`any_overlap` as IoU."""
    return any_overlap(predicted, truths)


def unusable(predicted: Array) -> NDArray[np.bool_]:
    """Which answers (E, 4) are no box: not finite, or without area."""
    sides = predicted[:, 2:] - predicted[:, :2]
    sound = np.isfinite(predicted) & np.tile(sides > 0, 2)
    return ~np.asarray(sound.all(axis=1))
