"""Generalized grounding (GREC, gRefCOCO): every box that is meant and no other, or none.

An expression is answered where F1 is 1: each true box is met by a box of its own at IoU >= t, and
no box is left over. *Pr@t* is the share of such expressions, those about nothing included. Beside
it always stand *N-acc*, the share of expressions about nothing that get no box, and *T-acc*, the
share of the others that get one: a system that answers nothing has N-acc 1, one that always answers
T-acc 1.

Boxes are matched as in the benchmark: the pair with the highest overlap first, then the next among
those left. Its own evaluator compares GIoU with the threshold; ``overlap="giou"`` does so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.grec_answers import SetPrediction, write_set_predictions
from finetune.metrics import RESAMPLES, ROUNDING, THRESHOLDS, Array, Summary
from finetune.protocols import Corners, Overlap, merged_overlap, unusable
from finetune.sheet import ALL, Sheet
from finetune.slices import slices_of
from finetune.tables import column_heads, row_of
from wholegrain.errors import DataError

MIN_SCORE = 0.7
"""The benchmark's: boxes with lower scores are no part of the answer."""

_PROTOCOL, _F1 = "set", "mean_f1"
_ANSWERED, _REFUSED = "answered", "refused"
_TARGET, _NO_TARGET = "target: some", "target: none"
_COLUMNS = (*(f"pr@{t:g}" for t in THRESHOLDS), _F1)


@dataclass(frozen=True)
class SetEvaluation:
    """Predictions and what they are worth."""

    predictions: list[SetPrediction]
    sheet: Sheet
    summaries: dict[str, Summary]
    """Slice -> metrics; the slice ``all`` comes first."""
    unusable: int
    """Boxes of the answers that are no box; each meets nothing."""
    min_score: float
    overlap: Overlap

    def summary(self, group: str = ALL) -> Summary:
        """The metrics on a slice; by default the headline."""
        return self.summaries[group]

    @property
    def precision(self) -> float:
        """Pr@(F1=1, IoU>=0.5), the benchmark's figure."""
        return self.summary().values["pr@0.5"]

    @property
    def n_acc(self) -> float | None:
        """Share of the expressions about nothing that got no box; None if there are none."""
        found = self.summaries.get(_NO_TARGET)
        return None if found is None else found.values[_REFUSED]

    @property
    def t_acc(self) -> float | None:
        """Share of the expressions about something that got a box; None if there are none."""
        found = self.summaries.get(_TARGET)
        return None if found is None else found.values[_ANSWERED]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "overlap": self.overlap,
            "min_score": self.min_score,
            "unusable_boxes": self.unusable,
            "n_acc": self.n_acc,
            "t_acc": self.t_acc,
            _PROTOCOL: {name: summary.to_dict() for name, summary in self.summaries.items()},
        }

    def write(self, path: Path) -> Path:
        """Writes the predictions with their truth."""
        return write_set_predictions(path, self.predictions)

    def table(self) -> str:
        """The figures as text."""
        lines = [column_heads(_COLUMNS), row_of("F1 = 1", self.summary(), _COLUMNS)]
        for name, group, mark in (
            ("N-acc", _NO_TARGET, _REFUSED),
            ("T-acc", _TARGET, _ANSWERED),
        ):
            if group in self.summaries:
                lines.append(row_of(name, self.summaries[group], [mark]))
            else:
                lines.append(f"{name}: no such expression")
        for name, summary in self.summaries.items():
            if name not in (ALL, _TARGET, _NO_TARGET):
                lines.append(row_of(f"  {name}", summary, _COLUMNS))
        if self.overlap == "giou":
            lines.append("GIoU in place of IoU: not to be set beside figures by IoU")
        lines.append(f"shares in %, of boxes with score >= {self.min_score:g}")
        lines.append("intervals: bootstrap over images, 95 %")
        if self.unusable:
            lines.append(f"{self.unusable} boxes of the answers were no box: each meets nothing")
        return "\n".join(lines)


def evaluate_sets(
    predictions: Sequence[SetPrediction],
    *,
    min_score: float = MIN_SCORE,
    overlap: Overlap = "iou",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SetEvaluation:
    """All metrics and slices of a set of predictions.

    Args:
        predictions: one an expression; their order changes no figure.
        min_score: boxes with lower scores are left out; boxes without scores all count.
        overlap: what thresholds are compared with, ``iou``, or ``giou`` as the benchmark's own
            evaluator does.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: there is no prediction.
    """
    if not predictions:
        raise DataError("no prediction to evaluate; the split or the file is empty")
    asked = [one.expression for one in predictions]
    kept = [one.kept(min_score) for one in predictions]
    counts = np.array([len(one.truths) for one in asked])
    answered = np.array([len(boxes) > 0 for boxes in kept], dtype=np.float64)
    scores = [f1_scores(boxes, one.truths, overlap) for boxes, one in zip(kept, asked, strict=True)]
    f1 = np.array(scores).reshape(-1, len(THRESHOLDS))
    marks = {f"pr@{t:g}": (f1[:, k] == 1).astype(np.float64) for k, t in enumerate(THRESHOLDS)}
    marks |= {_F1: f1[:, 0], _ANSWERED: answered, _REFUSED: 1 - answered}
    slices = slices_of(
        [one.text for one in asked],
        np.array([_share(one.truths, one.width * one.height) for one in asked]),
        counts,
        [()] * len(asked),
    )
    sheet = Sheet.of(
        [(one.id, one.image, one.truths) for one in asked],
        {_PROTOCOL: marks},
        {_TARGET: counts > 0, _NO_TARGET: counts == 0, **slices},
    )
    flat = np.array([box for boxes in kept for box in boxes], dtype=np.float64).reshape(-1, 4)
    return SetEvaluation(
        predictions=list(predictions),
        sheet=sheet,
        summaries=sheet.summaries(resamples=resamples, seed=seed)[_PROTOCOL],
        unusable=int(unusable(flat).sum()),
        min_score=min_score,
        overlap=overlap,
    )


def f1_scores(
    boxes: Sequence[Corners], truths: Sequence[Corners], overlap: Overlap = "iou"
) -> list[float]:
    """F1 of an answer at each of `THRESHOLDS`: 2 TP / (2 TP + FP + FN); 1 for none about nothing.

    Args:
        boxes: the answer, xyxy pixels.
        truths: all that is meant, xyxy pixels.
        overlap: what thresholds are compared with.
    """
    if not boxes or not truths:
        return [float(len(boxes) == len(truths))] * len(THRESHOLDS)
    answers = np.repeat(np.array(boxes, dtype=np.float64), len(truths), axis=0)
    targets = np.tile(np.array(truths, dtype=np.float64), (len(boxes), 1))
    pairs = merged_overlap(answers, targets, overlap).reshape(len(boxes), len(truths))
    best = _match(pairs)
    total = len(boxes) + len(truths)
    return [2 * int(np.count_nonzero(best >= t - ROUNDING)) / total for t in THRESHOLDS]


def _match(pairs: Array) -> Array:
    """Overlaps of the pairs in the order in which they are matched, of boxes (P,) with truths (T,).

    The order does not depend on a threshold, so one matching serves all of them.
    """
    pairs = pairs.copy()
    found = np.empty(min(pairs.shape))
    for k in range(len(found)):
        box, truth = np.unravel_index(np.argmax(pairs), pairs.shape)
        found[k] = pairs[box, truth]
        pairs[box, :] = -np.inf
        pairs[:, truth] = -np.inf
    return found


def _share(truths: Sequence[Corners], area: int) -> float:
    """Area of the box around all true ones over the image's; NaN without any."""
    if not truths:
        return float("nan")
    edges: NDArray[np.float64] = np.array(truths, dtype=np.float64)
    width, height = edges[:, 2:].max(axis=0) - edges[:, :2].min(axis=0)
    return float(width * height / area)
