"""From predictions to figures: the one function through which every published number goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import RESAMPLES, Summary, summarise
from finetune.predictions import Prediction, write_predictions
from finetune.protocols import PROTOCOLS, any_iou, merged_iou, unusable
from finetune.slices import slices_of
from wholegrain.errors import DataError

ALL = "all"


@dataclass(frozen=True)
class Evaluation:
    """Predictions and what they are worth."""

    predictions: list[Prediction]
    iou: dict[str, NDArray[np.float64]]
    """For each protocol (``merged``, ``any``) the IoU (E,) of each prediction."""
    summaries: dict[str, dict[str, Summary]]
    """Protocol -> slice -> metrics; the slice ``all`` comes first."""
    unusable: int
    """Answers that were missing or no box; each counts as a miss."""

    def summary(self, protocol: str = "merged", group: str = ALL) -> Summary:
        """The metrics of a protocol on a slice; by default the headline."""
        return self.summaries[protocol][group]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = {"unusable_answers": self.unusable}
        for protocol, groups in self.summaries.items():
            found[protocol] = {name: summary.to_dict() for name, summary in groups.items()}
        return found

    def write(self, path: Path) -> Path:
        """Writes `predictions.jsonl`."""
        merged, best = self.iou["merged"].tolist(), self.iou["any"].tolist()
        return write_predictions(path, self.predictions, merged, best)

    def table(self) -> str:
        """The figures as text: each protocol, then the slices under the merged protocol."""
        head = f"{'':<22}{'count':>7}{'Acc@0.5':>9}{'95 % interval':>16}{'@0.75':>8}{'@0.9':>8}"
        lines = [head + f"{'mean IoU':>10}"]
        for protocol in PROTOCOLS:
            lines.append(_row(f"{protocol} box", self.summary(protocol)))
        for name, summary in self.summaries["merged"].items():
            if name != ALL:
                lines.append(_row(f"  {name}", summary))
        lines.append("accuracies in %; intervals: bootstrap over images, 95 %")
        if self.unusable:
            lines.append(f"{self.unusable} answers were missing or no box: counted as misses")
        return "\n".join(lines)


def evaluate_predictions(
    predictions: Sequence[Prediction], *, resamples: int = RESAMPLES, seed: int = 0
) -> Evaluation:
    """All metrics, protocols and slices of a set of predictions.

    Args:
        predictions: one an expression; their order changes no figure.
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
    iou = {
        "merged": merged_iou(answers, truth),
        "any": any_iou(answers, [one.truths for one in predictions]),
    }
    areas = np.array([one.width * one.height for one in predictions], dtype=np.float64)
    groups = {ALL: np.ones(len(predictions), dtype=bool)} | slices_of(
        [one.text for one in predictions],
        (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]) / areas,
        np.array([len(one.truths) for one in predictions]),
    )
    _, images = np.unique([one.image for one in predictions], return_inverse=True)
    return Evaluation(
        predictions=list(predictions),
        iou=iou,
        summaries={
            protocol: summarise(values, images, groups, resamples=resamples, seed=seed)
            for protocol, values in iou.items()
        },
        unusable=int(unusable(answers).sum()),
    )


def _row(name: str, summary: Summary) -> str:
    values = summary.values
    low, high = summary.intervals["acc@0.5"]
    interval = f"{100 * low:.1f} .. {100 * high:.1f}"
    return (
        f"{name:<22}{summary.expressions:>7}{100 * values['acc@0.5']:>9.2f}{interval:>16}"
        f"{100 * values['acc@0.75']:>8.2f}{100 * values['acc@0.9']:>8.2f}"
        f"{values['mean_iou']:>10.4f}"
    )
