"""Predictions of generalized grounding on disk: any number of boxes a line, each with a score.

{"id": "...", "boxes": [[...], [...]], "scores": [0.9, 0.8]}
{"id": "...", "boxes": []}                                       nothing is meant
{"id": "...", "box": [...], "score": 0.9}                        one box; null: nothing
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.answers import HOW_TO_ANSWER, Line, Size, corners_field, number_field, read_lines
from finetune.conventions import Array
from finetune.grec_samples import SetExpression
from finetune.predictions import write_lines
from finetune.protocols import Corners, any_iou
from finetune.reading import Reading
from finetune.roll_call import RollCall


@dataclass(frozen=True, slots=True)
class SetPrediction:
    """An answered expression; boxes are xyxy pixels of the stored image once they are read."""

    expression: SetExpression
    boxes: tuple[Corners, ...]
    """All that the system gave, also those of low score; empty where it says that nothing fits."""
    scores: tuple[float, ...] | None = None
    """Of the boxes; None where the system gives boxes without scores, and means them all."""

    def kept(self, min_score: float) -> tuple[Corners, ...]:
        """The boxes that are meant as the answer: those with score >= `min_score`."""
        if self.scores is None:
            return self.boxes
        scored = zip(self.boxes, self.scores, strict=True)
        return tuple(box for box, score in scored if score >= min_score)


def read_set_predictions(
    path: Path, expressions: Sequence[SetExpression] | None, reading: Reading
) -> list[SetPrediction]:
    """The predictions of a file, their boxes in pixels.

    Args:
        path: the file.
        expressions: what was asked, which orders the result; None takes the truth from the file.
        reading: the convention of the boxes.

    Raises:
        DataError: a malformed line, an id that is missing, repeated or unknown, or boxes that are
            not in the convention.
    """
    places = None
    if expressions is not None:
        places = {one.id: place for place, one in enumerate(expressions)}
    roll = RollCall(places)
    rows: list[tuple[int, SetPrediction, int, Size | None]] = []
    for line in read_lines(path):
        if not roll.answered(line.id, line.number):
            continue
        if places is None or expressions is None:
            place, expression = len(rows), _own_expression(line)
        else:
            place = places[line.id]
            expression = expressions[place]
            line.check_text(expression.text)
        boxes, scores = _answer(line)
        answered = SetPrediction(expression, boxes, scores)
        rows.append((place, answered, line.number, line.resized()))
    roll.close(HOW_TO_ANSWER if places is not None else "remove the repetitions", f"{path}: ")
    rows.sort(key=lambda row: row[0])
    return _in_pixels(path, rows, reading)


def write_set_predictions(path: Path, predictions: Iterable[SetPrediction]) -> Path:
    """Writes predictions with their truth beside them; whole or not at all."""
    return write_lines(path, (_row(one) for one in predictions))


def _row(one: SetPrediction) -> dict[str, Any]:
    asked = one.expression
    row: dict[str, Any] = {
        key: getattr(asked, key) for key in ("id", "image", "text", "split", "width", "height")
    }
    row["boxes"] = one.boxes
    if one.scores is not None:
        row["scores"] = one.scores
    row["truths"] = asked.truths
    if asked.ref_id is not None:
        row |= {"ref_id": asked.ref_id, "sent_id": asked.sent_id}
    return row


def _own_expression(line: Line) -> SetExpression:
    fields = line.fields
    fields.required("truths")
    width, height = line.size()
    return SetExpression(
        id=line.id,
        image=fields.text("image"),
        text=fields.text("text"),
        split=fields.text("split"),
        width=width,
        height=height,
        truths=line.truths(),
        ref_id=line.reference("ref_id"),
        sent_id=line.reference("sent_id"),
    )


def _answer(line: Line) -> tuple[tuple[Corners, ...], tuple[float, ...] | None]:
    fields, values = line.fields, line.values
    if "boxes" not in values and "box" in values:
        if values["box"] is None:
            return (), None
        score = line.number_of("score")
        box = corners_field(fields, "box", values["box"])
        return (box,), None if score is None else (score,)
    fields.required("boxes")
    boxes = line.several("boxes")
    if values.get("scores") is None:
        return boxes, None
    listed = fields.sequence("scores")
    scores = tuple(number_field(fields, f"scores[{i}]", value) for i, value in enumerate(listed))
    if len(scores) != len(boxes):
        raise fields.error("scores", list(scores), f"give one for each of {len(boxes)} boxes")
    return boxes, scores


def _in_pixels(
    path: Path, rows: Sequence[tuple[int, SetPrediction, int, Size | None]], reading: Reading
) -> list[SetPrediction]:
    predictions = [one for _, one, _, _ in rows]
    owners = [place for place, one in enumerate(predictions) for _ in one.boxes]
    asked = [predictions[place].expression for place in owners]
    values = [box for one in predictions for box in one.boxes]
    with_truth = [row for row, one in enumerate(asked) if one.truths]

    def mean_iou(pixels: Array) -> float:
        if not with_truth:
            return 0.0
        return float(any_iou(pixels[with_truth], [asked[row].truths for row in with_truth]).mean())

    pixels = reading.to_pixels(
        np.array(values, dtype=np.float64).reshape(-1, 4),
        np.array([(one.width, one.height) for one in asked], dtype=np.float64).reshape(-1, 2),
        [rows[place][3] for place in owners],
        lambda row: f"{path}:{rows[owners[row]][2]}",
        mean_iou,
    )
    remaining = iter(pixels.tolist())
    return [
        replace(one, boxes=tuple(tuple(next(remaining)) for _ in one.boxes)) for one in predictions
    ]
