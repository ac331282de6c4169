"""The best constant box: what grounding reaches without looking and without reading.

Annotated boxes are large and central, so one fixed box answers many expressions. The best one *of
the training set* is the floor that every figure is shown beside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import RESAMPLES, ROUNDING
from finetune.predictions import Prediction
from finetune.results import Evaluation, evaluate_predictions
from finetune.samples import Expression

Array = NDArray[np.float64]

_GRID = 10  # edges of the coarse grid: 0, 0.1, ... 1
_COARSE_BOXES = 4_096  # ranks the coarse candidates
_FINE_BOXES = 16_384  # refines the best of them
_STARTS = 4
_STEPS = (0.05, 0.025, 0.0125, 0.00625, 0.003)
_CHUNK = 1 << 18  # candidate-box pairs at a time: small enough to stay in cache


@dataclass(frozen=True, slots=True)
class ConstantBox:
    """One answer for all expressions."""

    box: tuple[float, float, float, float]
    """cxcywh, as fractions of the image."""
    accuracy: float
    """Share of the boxes it was chosen on with IoU >= the threshold."""

    def pixels(self, width: float, height: float) -> tuple[float, float, float, float]:
        """As xyxy pixels of an image of this size."""
        cx, cy, w, h = self.box
        return (
            (cx - w / 2) * width,
            (cy - h / 2) * height,
            (cx + w / 2) * width,
            (cy + h / 2) * height,
        )


def best_constant_box(boxes: Array, threshold: float = 0.5) -> ConstantBox:
    """The box with the highest share of `boxes` at IoU >= `threshold`.

    IoU does not change when an axis is rescaled, so fractions of the image serve for images of
    every size. A grid over both corners is ranked on a fixed subsample; the best few are refined by
    pattern search with halving steps (all 80 joint moves of the four edges), and the winner is
    refined once more on all boxes. Nothing is random: the same boxes give the same answer.

    Args:
        boxes: (N, 4) cxcywh as fractions of the image, of the training set, one per expression.
        threshold: IoU that counts as a hit.

    Raises:
        ValueError: no box, another shape, or a value that is not finite.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0 or not np.isfinite(boxes).all():
        raise ValueError(f"best_constant_box needs finite (N, 4) with N >= 1, got {boxes.shape}")
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)

    grid = _grid()
    order = np.argsort(-_hits(grid, _spread(corners, _COARSE_BOXES), threshold), kind="stable")
    fine = _spread(corners, _FINE_BOXES)
    refined = np.stack([_refine(grid[i], fine, threshold, _STEPS) for i in order[:_STARTS]])
    winner = refined[np.argmax(_hits(refined, corners, threshold))]
    if len(fine) < len(corners):
        winner = _refine(winner, corners, threshold, _STEPS[-2:])
    accuracy = float(_hits(winner[None], corners, threshold)[0]) / len(corners)
    x1, y1, x2, y2 = (float(edge) for edge in winner)
    return ConstantBox(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), accuracy)


def constant_baseline(
    train: Sequence[Expression],
    test: Sequence[Expression],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[ConstantBox, Evaluation]:
    """The best constant box of the training expressions (merged boxes), and its figures on others.

    No image is read. Errors as for `best_constant_box` and `evaluate_predictions`.
    """
    boxes = np.array([one.box for one in train], dtype=np.float64).reshape(-1, 4)
    sizes = np.array([(one.width, one.height) for one in train], dtype=np.float64).reshape(-1, 2)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    constant = best_constant_box(np.concatenate([centres / sizes, boxes[:, 2:] / sizes], axis=1))
    answers = [Prediction.of(one, constant.pixels(one.width, one.height)) for one in test]
    return constant, evaluate_predictions(answers, resamples=resamples, seed=seed)


def _grid() -> Array:
    edges = np.linspace(0.0, 1.0, _GRID + 1)
    spans = list(itertools.combinations(edges, 2))
    return np.array([(x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans])


def _spread(rows: Array, limit: int) -> Array:
    """At most `limit` rows, evenly spread."""
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def _refine(start: Array, corners: Array, threshold: float, steps: tuple[float, ...]) -> Array:
    moves = np.array([move for move in itertools.product((-1, 0, 1), repeat=4) if any(move)])
    best, best_hits = start, _hits(start[None], corners, threshold)[0]
    for step in steps:
        while True:
            # A part outside the image meets no box: cutting it off never lowers an IoU.
            around = np.clip(best + step * moves, 0.0, 1.0)
            hits = _hits(around, corners, threshold)
            leader = int(np.argmax(hits))
            if hits[leader] <= best_hits:
                break
            best, best_hits = around[leader], hits[leader]
    return best


def _hits(candidates: Array, corners: Array, threshold: float) -> NDArray[np.int64]:
    """How many of `corners` (N, 4) each candidate (C, 4) meets at IoU >= threshold: (C,).

    I / (A + B - I) >= t  is  I >= t / (1 + t) * (A + B): no division, no union.
    """
    reached = threshold - ROUNDING
    share = reached / (1 + reached)
    x1, y1, x2, y2 = np.ascontiguousarray(corners.T)
    areas = share * (x2 - x1) * (y2 - y1)
    found = np.empty(len(candidates), dtype=np.int64)
    rows = max(1, _CHUNK // len(corners))
    for start in range(0, len(candidates), rows):
        a1, b1, a2, b2 = candidates[start : start + rows].T[:, :, None]
        across = np.minimum(a2, x2) - np.maximum(a1, x1)
        down = np.minimum(b2, y2) - np.maximum(b1, y1)
        shared = np.maximum(across, 0.0, out=across) * np.maximum(down, 0.0, out=down)
        own = share * np.maximum(a2 - a1, 0.0) * np.maximum(b2 - b1, 0.0)
        found[start : start + rows] = np.count_nonzero(shared >= areas + own, axis=1)
    return found
