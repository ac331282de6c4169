"""From predictions to figures: the one function through which every published number goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import MEAN_GIOU, MEAN_IOU, RESAMPLES, Summary, overlap_marks
from finetune.predictions import Prediction, write_predictions
from finetune.protocols import PROTOCOLS, Overlap, any_overlap, merged_overlap, unusable
from finetune.sheet import ALL, Sheet
from finetune.slices import slices_of
from finetune.tables import column_heads, row_of
from wholegrain.errors import DataError

_COLUMNS = ("acc@0.5", "acc@0.75", "acc@0.9")


@dataclass(frozen=True)
class Evaluation:
    """Predictions and what they are worth."""

    predictions: list[Prediction]
    iou: dict[str, NDArray[np.float64]]
    """For each protocol (``merged``, ``any``) the IoU (E,) of each prediction."""
    sheet: Sheet
    """The marks of each prediction under each protocol."""
    summaries: dict[str, dict[str, Summary]]
    """Protocol -> slice -> metrics; the slice ``all`` comes first."""
    unusable: int
    """Answers that were missing or no box; each counts as a miss."""
    overlap: Overlap = "iou"
    """What the thresholds are compared with."""

    def summary(self, protocol: str = "merged", group: str = ALL) -> Summary:
        """The metrics of a protocol on a slice; by default the headline."""
        return self.summaries[protocol][group]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = {"overlap": self.overlap, "unusable_answers": self.unusable}
        for protocol, groups in self.summaries.items():
            found[protocol] = {name: summary.to_dict() for name, summary in groups.items()}
        return found

    def write(self, path: Path) -> Path:
        """Writes `predictions.jsonl`."""
        merged, best = self.iou["merged"].tolist(), self.iou["any"].tolist()
        return write_predictions(path, self.predictions, merged, best)

    def table(self) -> str:
        """The figures as text: each protocol, then the slices under the merged protocol."""
        mean = _mean_name(self.overlap)
        columns = [*_COLUMNS, mean]
        lines = [column_heads(columns)]
        for protocol in PROTOCOLS:
            lines.append(row_of(f"{protocol} box", self.summary(protocol), columns))
        for name, summary in self.summaries["merged"].items():
            if name != ALL:
                lines.append(row_of(f"  {name}", summary, columns))
        if self.overlap == "giou":
            lines.append("GIoU in place of IoU: not to be set beside figures by IoU")
        lines.append("accuracies in %; intervals: bootstrap over images, 95 %")
        if self.unusable:
            lines.append(f"{self.unusable} answers were missing or no box: counted as misses")
        return "\n".join(lines)


def evaluate_predictions(
    predictions: Sequence[Prediction],
    *,
    overlap: Overlap = "iou",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """All metrics, protocols and slices of a set of predictions.

    Args:
        predictions: one an expression; their order changes no figure.
        overlap: what thresholds are compared with, ``iou``, or ``giou`` as MDETR's evaluator does.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: there is no prediction.
    """
    if not predictions:
        raise DataError("no prediction to evaluate; the split or the file is empty")
    nothing = (np.nan,) * 4
    answers = np.array([one.box or nothing for one in predictions], dtype=np.float64)
    truth = np.array([one.truth for one in predictions], dtype=np.float64)
    truths = [one.truths for one in predictions]

    def overlaps(measure: Overlap) -> dict[str, NDArray[np.float64]]:
        merged = merged_overlap(answers, truth, measure)
        return {"merged": merged, "any": any_overlap(answers, truths, measure)}

    iou = overlaps("iou")
    measured = iou if overlap == "iou" else overlaps(overlap)
    mean = _mean_name(overlap)
    sheet = Sheet.of(
        [(one.id, one.image, one.truths) for one in predictions],
        {protocol: overlap_marks(values, mean) for protocol, values in measured.items()},
        _slices(predictions, truth),
    )
    return Evaluation(
        predictions=list(predictions),
        iou=iou,
        sheet=sheet,
        summaries=sheet.summaries(resamples=resamples, seed=seed),
        unusable=int(unusable(answers).sum()),
        overlap=overlap,
    )


def _slices(
    predictions: Sequence[Prediction], truth: NDArray[np.float64]
) -> dict[str, NDArray[np.bool_]]:
    areas = np.array([one.width * one.height for one in predictions], dtype=np.float64)
    return slices_of(
        [one.text for one in predictions],
        (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]) / areas,
        np.array([len(one.truths) for one in predictions]),
        [one.kinds for one in predictions],
    )


def _mean_name(overlap: Overlap) -> str:
    return MEAN_IOU if overlap == "iou" else MEAN_GIOU
