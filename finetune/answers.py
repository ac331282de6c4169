"""Reading predictions files, ours or another system's, line by line.

Nothing of a line is kept but what is evaluated: other systems store whole conversations beside
their boxes. With the expressions of a corpus, memory grows with them and not with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.predictions import Prediction
from finetune.protocols import Corners
from finetune.roll_call import RollCall
from finetune.samples import Expression
from finetune.slices import KINDS
from wholegrain.data.record_parse import MAX_RECORD_BYTES, MAX_SIDE_PX, Fields, load_json
from wholegrain.errors import DataError

Size = tuple[float, float]

_LARGEST = 1e12
HOW_TO_ANSWER = (
    "--write-questions lists the ids, and an expression without an answer has a null box"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a predictions file, with checked access; every fault is a RecordError."""

    number: int
    id: str
    values: dict[str, Any]
    fields: Fields

    def number_of(self, key: str) -> float | None:
        """The finite number `key`; None where the line has none."""
        value = self.values.get(key)
        return None if value is None else number_field(self.fields, key, value)

    def reference(self, key: str) -> int | None:
        """The id `key`; None where the line has none."""
        present = self.values.get(key) is not None
        return self.fields.integer(key, 0, 1 << 62) if present else None

    def corners(self, key: str) -> Corners:
        """The four numbers `key`."""
        return corners_field(self.fields, key, self.fields.required(key))

    def several(self, key: str) -> tuple[Corners, ...]:
        """The list of boxes `key`; empty where the line has none."""
        listed = self.fields.sequence(key)
        return tuple(corners_field(self.fields, f"{key}[{i}]", box) for i, box in enumerate(listed))

    def truths(self) -> tuple[Corners, ...]:
        """The true boxes ``truths``, each with an area; empty where the line has none."""
        found = self.several("truths")
        for i, box in enumerate(found):
            self.check_area(f"truths[{i}]", box)
        return found

    def check_area(self, key: str, box: Corners) -> None:
        """A true box has an area, or nothing could meet it."""
        if box[2] <= box[0] or box[3] <= box[1]:
            raise self.fields.error(key, list(box), "must be left, top, right, bottom with an area")

    def resized(self) -> Size | None:
        """The size that the image was resized to, ``[width, height]``; None without one."""
        value = self.values.get("resized")
        if value is None:
            return None
        remedy = "must be [width, height] in pixels, both positive"
        if not isinstance(value, list) or len(value) != 2:
            raise self.fields.error("resized", value, remedy)
        width, height = (number_field(self.fields, "resized", number) for number in value)
        if min(width, height) <= 0:
            raise self.fields.error("resized", value, remedy)
        return width, height

    def kinds(self) -> tuple[str, ...]:
        """The annotated kinds of the thing, of `KINDS`."""
        found = self.fields.texts("kinds")
        for kind in found:
            if kind not in KINDS:
                raise self.fields.error("kinds", kind, f"use some of {', '.join(KINDS)}")
        return found

    def size(self) -> tuple[int, int]:
        """Width and height of the stored image."""
        width, height = (self.fields.integer(side, 1, MAX_SIDE_PX) for side in ("width", "height"))
        return width, height

    def check_text(self, expected: str) -> None:
        """The line's text, if it has one, is that of the corpus; else the ids are of another."""
        text = self.fields.optional_text("text")
        if text is not None and text != expected:
            remedy = f"the corpus says {expected!r}; the ids belong to another corpus"
            raise self.fields.error("text", text, remedy)


@dataclass
class Answers:
    """The predictions of a file, their boxes in the convention of its writer."""

    path: Path
    predictions: list[Prediction] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Of each prediction in the file."""
    resized: list[Size | None] = field(default_factory=list)
    stored: list[tuple[float | None, float | None]] = field(default_factory=list)
    """The IoU under both protocols as the line has it; empty where the truth is a corpus's."""

    def where(self, index: int) -> str:
        """File and line of a prediction."""
        return f"{self.path}:{self.lines[index]}"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a predictions file, in its order, each no longer than a record may be.

    Raises:
        DataError: the file is missing or empty, or a line is no JSON object with an `id`.
    """
    empty = True
    try:
        with path.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_RECORD_BYTES + 1):
                number += 1
                if not raw.strip():
                    continue
                empty = False
                values = load_json(raw, f"{path}:{number}")
                fields = Fields(values, f"{path}:{number}", "")
                yield Line(number, fields.text("id"), values, fields)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if empty:
        raise DataError(f"{path}: no prediction in it; it needs one JSON line an expression")


def read_predictions(path: Path) -> Answers:
    """A file whose lines hold the truth too, as `write_predictions` writes it.

    Raises:
        DataError: names the line and the field that is missing or wrong, or a repeated id.
    """
    found, roll = Answers(path), RollCall(None)
    for line in read_lines(path):
        if roll.answered(line.id, line.number):
            _keep(found, line, _complete(line))
            found.stored.append((line.number_of("iou"), line.number_of("iou_any")))
    roll.close("remove the repetitions", f"{path}: ")
    return found


def match_answers(path: Path, expressions: Sequence[Expression]) -> Answers:
    """Pairs the lines of a file with the expressions of a corpus, in the corpus's order.

    Raises:
        DataError: a malformed line, an expression that is unanswered or answered twice, an unknown
            id, or a line whose `text` is not the expression's.
    """
    places = {one.id: place for place, one in enumerate(expressions)}
    found, roll, order = Answers(path), RollCall(places), []
    for line in read_lines(path):
        if roll.answered(line.id, line.number):
            place = places[line.id]
            line.check_text(expressions[place].text)
            given = Prediction.of(expressions[place], _box(line), line.number_of("score"))
            _keep(found, line, given)
            order.append(place)
    roll.close(HOW_TO_ANSWER, f"{path}: ")
    at = np.argsort(np.array(order), kind="stable").tolist()
    return Answers(
        path,
        predictions=[found.predictions[i] for i in at],
        lines=[found.lines[i] for i in at],
        resized=[found.resized[i] for i in at],
    )


def corners_field(fields: Fields, key: str, value: object) -> Corners:
    """Four finite numbers.

    Raises:
        RecordError: anything else.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise fields.error(key, value, "must be a list of four numbers")
    a, b, c, d = (number_field(fields, key, number) for number in value)
    return (a, b, c, d)


def number_field(fields: Fields, key: str, value: object) -> float:
    """A finite number.

    Raises:
        RecordError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fields.error(key, value, "must be a number")
    # Compared before conversion: an integer of 400 digits overflows, and 1e999 reads as infinity.
    if not -_LARGEST < value < _LARGEST:
        raise fields.error(key, value, "must be finite")
    return float(value)


def _box(line: Line) -> Corners | None:
    box = line.fields.required("box")
    return None if box is None else corners_field(line.fields, "box", box)


def _keep(found: Answers, line: Line, prediction: Prediction) -> None:
    found.predictions.append(prediction)
    found.lines.append(line.number)
    found.resized.append(line.resized())


def _complete(line: Line) -> Prediction:
    truth = line.corners("truth")
    line.check_area("truth", truth)
    width, height = line.size()
    return Prediction(
        id=line.id,
        image=line.fields.text("image"),
        text=line.fields.text("text"),
        split=line.fields.text("split"),
        width=width,
        height=height,
        truth=truth,
        truths=line.truths() or (truth,),
        box=_box(line),
        score=line.number_of("score"),
        ref_id=line.reference("ref_id"),
        sent_id=line.reference("sent_id"),
        kinds=line.kinds(),
    )
