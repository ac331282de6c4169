"""Predictions on disk: one JSON line an expression, holding the answer and the truth beside it.

A line suffices to compute every metric again, so the file can be re-evaluated years later without
the corpus, and gives the same figures to the last digit. `finetune.answers` reads it, and the
shorter lines of other systems.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.protocols import Corners
from finetune.samples import Expression
from wholegrain.errors import ConfigError, DataError

QUESTION = ("id", "image", "text", "width", "height")
# The machine's faults rather than the user's: a job may meet none of them on another node.
_NOT_THE_USERS = (errno.EIO, errno.ESTALE)


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
    kinds: tuple[str, ...] = ()
    """Annotated kinds of the thing, of `finetune.slices.KINDS`."""

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
            truth=corners_of(expression.box),
            truths=tuple(map(corners_of, expression.boxes)),
            box=box,
            score=score,
            ref_id=expression.ref_id,
            sent_id=expression.sent_id,
            kinds=expression.kinds,
        )


class Question(Protocol):
    """What is asked, without its truth."""

    @property
    def id(self) -> str: ...

    @property
    def image(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


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
        if one.kinds:
            row["kinds"] = one.kinds
        rows.append(row)
    return write_lines(path, rows)


def write_questions(path: Path, questions: Iterable[Question]) -> Path:
    """Writes the expressions without their truth, for another system to answer."""
    return write_lines(path, ({key: getattr(one, key) for key in QUESTION} for one in questions))


def corners_of(xywh: Corners) -> Corners:
    """Left, top, width, height to two corners, without a tensor for four numbers."""
    x, y, w, h = xywh
    return (x, y, x + w, y + h)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Writes JSON lines aside and moves them into place; whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    aside = path.with_name(_aside(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w", encoding="utf-8") as stream:
                for row in rows:
                    stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _NOT_THE_USERS:
            raise
        remedy = "make room there, or name a file in a folder that you may write to"
        raise DataError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error
    return path


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Whether each output can be written, and is neither an input nor another output.

    For programs to ask before they work, so that nothing is lost in the end; leaves nothing behind.

    Args:
        outputs: option -> file, which is to be written aside and renamed; None where it is not
            given.
        inputs: option -> file or folder that is read; None where it is not given.

    Raises:
        ConfigError: names the option, the path and the remedy.
    """
    taken = {option: path for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        for other, named in taken.items():
            if _same_file(path, named):
                raise ConfigError(f"{option} is {path}, which is {other} too; name another file")
        _check_writable(option, path)
        taken[option] = path


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is yet to be written
        return os.path.realpath(one) == os.path.realpath(other)


def _check_writable(option: str, path: Path) -> None:
    """By writing beside it, as root and network folders show their limits in no other way."""
    try:
        if path.is_dir():
            example = path / "predictions.jsonl"
            raise ConfigError(f"{option} is {path}, a folder; name a file, for instance {example}")
        if path.exists() and not path.is_file():
            # To rename a file to `/dev/null` would replace the device.
            raise ConfigError(f"{option} is {path}, no regular file; name one, or a new one")
        folder = next(folder for folder in path.parents if os.path.lexists(folder))
        probe = folder / _aside(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{option} is {path}, which cannot be written ({error.strerror}); name a file in a "
            "folder that you may write to"
        ) from error


def _aside(path: Path) -> str:
    """The name, unique to this process, under which a file is written until it is whole."""
    return f".{path.name}.partial-{os.getpid()}"
