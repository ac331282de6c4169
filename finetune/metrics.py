"""Means over a set of expressions, with their uncertainty.

Each expression has *marks*, such as whether its IoU reaches 0.5, and a metric is the mean of a mark
over expressions: Acc@t is the share with IoU >= t. Each expression counts once, whatever batch or
process it came from: there is no mean of means.

The intervals are 95 % percentile intervals of a cluster bootstrap over *images*: expressions of one
image stand or fall together, so drawing them one by one would make every interval too narrow.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

THRESHOLDS = (0.5, 0.75, 0.9)
ROUNDING = 1e-9
"""What an overlap may lack of a threshold: an IoU of exactly 0.5 comes out a few last bits below or
above, which must not decide a hit; no annotation is anywhere near this precise."""
RESAMPLES = 2_000
MAX_RESAMPLES = 1_000_000
"""What a program may ask for: memory and time grow with it; intervals settle long before."""
CONFIDENCE = 0.95
MEAN_IOU, MEAN_GIOU = "mean_iou", "mean_giou"

_DRAWS_AT_ONCE = 1 << 22  # bootstrap draws held in memory together
_FIXED_POINT = 2.0**30


def accuracy_name(threshold: float) -> str:
    """The name of a metric in every file: ``acc@0.5``."""
    return f"acc@{threshold:g}"


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics of one set of expressions."""

    expressions: int
    images: int
    values: dict[str, float]
    """Of grounding ``acc@0.5``, ``acc@0.75``, ``acc@0.9`` and ``mean_iou``, each in 0..1."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % interval of each value; NaN where no resample held one of these expressions."""

    @property
    def accuracy(self) -> float:
        """Acc@0.5, the benchmarks' figure."""
        return self.values[accuracy_name(0.5)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        intervals = {
            name: [None if math.isnan(bound) else bound for bound in interval]
            for name, interval in self.intervals.items()
        }
        return {
            "expressions": self.expressions,
            "images": self.images,
            **self.values,
            "interval_95": intervals,
        }


def overlap_marks(overlap: Array, mean: str = MEAN_IOU) -> dict[str, Array]:
    """The marks of grounding: whether each overlap (E,) reaches each threshold, and itself.

    Args:
        overlap: IoU of each expression; GIoU where `mean` is `MEAN_GIOU`.
        mean: the name of the mean overlap.

    Raises:
        ValueError: an overlap outside 0..1 (GIoU: -1..1) or NaN.
    """
    overlap = np.asarray(overlap, dtype=np.float64)
    least = -1.0 if mean == MEAN_GIOU else 0.0
    possible = (overlap >= least) & (overlap <= 1)
    if not possible.all():
        bad = int(np.flatnonzero(~possible)[0])
        name = mean.removeprefix("mean_").replace("iou", "IoU").replace("g", "G")
        raise ValueError(
            f"{name} of expression {bad} is {overlap[bad]}; it must lie in {least:g}..1"
        )
    hits = {accuracy_name(t): (overlap >= t - ROUNDING).astype(np.float64) for t in THRESHOLDS}
    return {**hits, mean: overlap}


def summarise(
    marks: Mapping[str, Array],
    images: NDArray[np.int64],
    groups: Mapping[str, Mask],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Summary]:
    """The mean of every mark in every group, all intervals from the same resamples of the images.

    Args:
        marks: name -> (E,) finite, of each expression.
        images: (E,) the number of the image of each expression, 0..K-1.
        groups: name -> mask (E,); a group without an expression is left out of the result.
        resamples: bootstrap draws of K images each.
        seed: of the draws.
    """
    groups = {name: np.asarray(mask, dtype=bool) for name, mask in groups.items() if np.any(mask)}
    if not groups:
        return {}
    metrics = np.stack([np.asarray(row, dtype=np.float64) for row in marks.values()])  # (M, E)
    clusters = int(images.max()) + 1
    masks = np.stack(list(groups.values()))  # (G, E)
    counts = _per_image(masks.astype(np.float64), images, clusters)  # (G, K)
    # On a fixed-point grid every sum below is exact, so that neither the order of the predictions
    # nor the number of threads of the linear algebra changes a digit of a published interval.
    exact = np.rint(metrics * _FIXED_POINT) / _FIXED_POINT
    sums = np.stack([_per_image(masks * row, images, clusters) for row in exact])  # (M, G, K)
    low, high = _intervals(sums, counts, resamples, seed)  # each (M, G)

    found = {}
    for g, (name, mask) in enumerate(groups.items()):
        # fsum rounds once, at the end: the same mean in whichever order the predictions arrived.
        values = [math.fsum(row[mask]) / int(mask.sum()) for row in metrics]
        found[name] = Summary(
            expressions=int(mask.sum()),
            images=int(np.count_nonzero(counts[g])),
            values=dict(zip(marks, values, strict=True)),
            intervals={mark: (float(low[m, g]), float(high[m, g])) for m, mark in enumerate(marks)},
        )
    return found


def _per_image(rows: Array, images: NDArray[np.int64], clusters: int) -> Array:
    """Sums each row (..., E) within the images: (..., K)."""
    return np.stack([np.bincount(images, weights=row, minlength=clusters) for row in rows])


def _intervals(sums: Array, counts: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """Bounds (M, G) of sum(sums) / sum(counts) when images are drawn with replacement.

    Args:
        sums: (M, G, K) of each metric, group and image.
        counts: (G, K) expressions.
    """
    metrics, groups, clusters = sums.shape
    columns = np.concatenate([sums.reshape(-1, clusters), counts]).T  # (K, M*G + G)
    rng = np.random.default_rng(seed)
    ratios = np.empty((resamples, metrics, groups))
    at_once = max(1, _DRAWS_AT_ONCE // clusters)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = rng.integers(0, clusters, size=(size, clusters))
        drawn += np.arange(size)[:, None] * clusters
        weights = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        totals = weights.astype(np.float64) @ columns
        with np.errstate(invalid="ignore"):  # a small group may be absent from a resample
            ratio = totals[:, : metrics * groups].reshape(size, metrics, groups)
            ratios[start : start + size] = ratio / totals[:, None, metrics * groups :]
    tail = (1 - CONFIDENCE) / 2 * 100
    with warnings.catch_warnings():  # a very small group may be absent from all of them
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = np.nanpercentile(ratios, [tail, 100 - tail], axis=0)
    return low, high
