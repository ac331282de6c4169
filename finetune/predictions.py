"""Predictions on disk: one JSON line an expression, holding the answer and the truth beside it.

A line suffices to compute every metric again, so the file can be re-evaluated years later without
the corpus, and gives the same figures to the last digit. Answers of other systems are read from the
same format with fewer fields (`id` and `box`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.samples import Expression
from wholegrain.data.record_parse import Fields, load_json
from wholegrain.errors import DataError

Corners = tuple[float, float, float, float]

_SHOWN_IDS = 3
_LARGEST = 1e12


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answered expression; all boxes are xyxy pixels of the stored image."""

    id: str
    image: str
    text: str
    split: str
    width: int
    height: int
    truth: Corners
    """The box that encloses all true boxes."""
    truths: tuple[Corners, ...]
    """Each true box."""
    box: Corners | None
    """The answer; None where the system gave none."""
    score: float | None = None
    ref_id: int | None = None
    sent_id: int | None = None

    @classmethod
    def of(
        cls, expression: Expression, box: Corners | None, score: float | None = None
    ) -> Prediction:
        """The answer `box` (xyxy pixels) to `expression`."""
        return cls(
            id=expression.id,
            image=expression.image,
            text=expression.text,
            split=expression.split,
            width=expression.width,
            height=expression.height,
            truth=_corners(expression.box),
            truths=tuple(map(_corners, expression.boxes)),
            box=box,
            score=score,
            ref_id=expression.ref_id,
            sent_id=expression.sent_id,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of a predictions file, the box still in the convention of its writer."""

    id: str
    box: Corners | None
    values: dict[str, Any]
    """The whole line."""
    fields: Fields
    """The same with checked access."""

    def number(self, key: str) -> float | None:
        """The finite number `key`; None where the line has none. RecordError: anything else."""
        value = self.values.get(key)
        return None if value is None else _number(self.fields, key, value)

    def reference(self, key: str) -> int | None:
        """The id `key`; None where the line has none. RecordError: anything else."""
        present = self.values.get(key) is not None
        return self.fields.integer(key, 0, 1 << 62) if present else None


def write_predictions(
    path: Path, predictions: Sequence[Prediction], iou: Sequence[float], iou_any: Sequence[float]
) -> Path:
    """Writes the predictions and their IoU under both protocols; whole or not at all."""
    rows = []
    for one, merged, best in zip(predictions, iou, iou_any, strict=True):
        row: dict[str, Any] = {
            "id": one.id,
            "image": one.image,
            "text": one.text,
            "split": one.split,
            "width": one.width,
            "height": one.height,
            "box": one.box,
            "score": one.score,
            "iou": float(merged),
            "iou_any": float(best),
            "truth": one.truth,
        }
        if len(one.truths) > 1:
            row["truths"] = one.truths
        if one.ref_id is not None:
            row |= {"ref_id": one.ref_id, "sent_id": one.sent_id}
        rows.append(row)
    return _write_lines(path, rows)


def write_questions(path: Path, expressions: Iterable[Expression]) -> Path:
    """Writes the expressions without their truth, for another system to answer."""
    keys = ("id", "image", "text", "width", "height")
    return _write_lines(path, ({key: getattr(one, key) for key in keys} for one in expressions))


def read_answers(path: Path) -> list[Answer]:
    """The lines of a predictions file, in its order.

    Raises:
        DataError: the file is missing or empty, a line is no JSON object, lacks `id` or `box`, or
            has a box that is not four finite numbers (or null, for no answer).
    """
    answers = []
    for where, line in _lines(path):
        values = load_json(line, where)
        fields = Fields(values, where, "")
        box = fields.required("box")
        answer = Answer(
            id=fields.text("id"),
            box=None if box is None else corners_field(fields, "box", box),
            values=values,
            fields=fields,
        )
        answers.append(answer)
    if not answers:
        raise DataError(f"{path}: no prediction in it; it needs one JSON line an expression")
    return answers


def complete_prediction(answer: Answer) -> Prediction:
    """An answer whose line holds the truth too, as `write_predictions` writes it.

    Raises:
        DataError: names the field that is missing or wrong.
    """
    fields = answer.fields
    truth = corners_field(fields, "truth", fields.required("truth"))
    several = fields.sequence("truths")
    return Prediction(
        id=answer.id,
        image=fields.text("image"),
        text=fields.text("text"),
        split=fields.text("split"),
        width=fields.integer("width", 1, 1 << 20),
        height=fields.integer("height", 1, 1 << 20),
        truth=truth,
        truths=tuple(corners_field(fields, f"truths[{i}]", box) for i, box in enumerate(several))
        or (truth,),
        box=answer.box,
        score=answer.number("score"),
        ref_id=answer.reference("ref_id"),
        sent_id=answer.reference("sent_id"),
    )


def match_answers(answers: Sequence[Answer], expressions: Sequence[Expression]) -> list[Prediction]:
    """Pairs the answers with the expressions of a corpus, in the corpus's order.

    The boxes are passed on as they are, in their writer's convention.

    Raises:
        DataError: an expression is unanswered or answered twice, an id is unknown, or a line's
            `text` is not the expression's (then the ids are those of another corpus).
    """
    check_complete(
        (answer.id for answer in answers),
        [expression.id for expression in expressions],
        "--write-questions lists the ids, and an expression without an answer has a null box",
    )
    by_id = {answer.id: answer for answer in answers}
    matched = []
    for expression in expressions:
        answer = by_id[expression.id]
        text = answer.fields.optional_text("text")
        if text is not None and text != expression.text:
            remedy = f"the corpus says {expression.text!r}; the ids belong to another corpus"
            raise answer.fields.error("text", text, remedy)
        matched.append(Prediction.of(expression, answer.box, answer.number("score")))
    return matched


def check_complete(found: Iterable[str], wanted: Sequence[str], remedy: str) -> None:
    """Every wanted id exactly once and no other.

    Raises:
        DataError: names the first few ids that are missing, repeated or unknown, and the remedy.
    """
    counts = Counter(found)
    known = set(wanted)
    faults = [
        f"{len(ids)} {fault} ({', '.join(ids[:_SHOWN_IDS])}{', ...' * (len(ids) > _SHOWN_IDS)})"
        for fault, ids in (
            ("missing", [one for one in wanted if one not in counts]),
            ("answered more than once", [one for one, times in counts.items() if times > 1]),
            ("unknown", [one for one in counts if one not in known]),
        )
        if ids
    ]
    if faults:
        raise DataError(
            f"each of {len(wanted)} expressions needs one answer: {'; '.join(faults)}; {remedy}"
        )


def corners_field(fields: Fields, key: str, value: object) -> Corners:
    """Four finite numbers.

    Raises:
        RecordError: anything else.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise fields.error(key, value, "must be a list of four numbers")
    a, b, c, d = (_number(fields, key, number) for number in value)
    return (a, b, c, d)


def _number(fields: Fields, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fields.error(key, value, "must be a number")
    # Compared before conversion: an integer of 400 digits overflows, and 1e999 reads as infinity.
    if not -_LARGEST < value < _LARGEST:
        raise fields.error(key, value, "must be finite")
    return float(value)


def _corners(xywh: Corners) -> Corners:
    x, y, w, h = xywh
    return (x, y, x + w, y + h)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
