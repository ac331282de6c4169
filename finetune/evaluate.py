"""Figures of a predictions file, ours or another system's.

    python -m finetune.evaluate predictions.jsonl
    python -m finetune.evaluate answers.jsonl --corpus DIR --split val --boxes xyxy_1000
    python -m finetune.evaluate answers.jsonl --corpus DIR --split val --task grec
    python -m finetune.evaluate results.json --task coco --truth instances_val2014.json
    python -m finetune.evaluate ours.jsonl --against theirs.jsonl
    python -m finetune.evaluate --corpus DIR --split val --write-questions questions.jsonl

Every expression counts once and must be answered once. Without a corpus the truth is read from the
file itself, as our evaluation writes it. With one, a line needs little:

    rec    {"id": "...", "box": [a, b, c, d]}         one box an expression; null: no answer
    grec   {"id": "...", "boxes": [[...], ...], "scores": [...]}       any number; []: nothing
    coco   a list of {"image_id", "category_id", "score", "bbox" or "segmentation"}
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.answers import Answers, Size, match_answers, read_predictions
from finetune.comparison import compare
from finetune.conventions import BOXES, CONVENTIONS, PIXELS, UNITS, Array
from finetune.detection import KINDS, detection_scores
from finetune.grec import MIN_SCORE, SetEvaluation, evaluate_sets
from finetune.grec_answers import read_set_predictions
from finetune.grec_samples import SetExpression, set_expressions
from finetune.metrics import MAX_RESAMPLES, RESAMPLES
from finetune.predictions import Prediction, check_outputs, write_questions
from finetune.protocols import OVERLAPS, Overlap, merged_iou
from finetune.reading import Reading
from finetune.results import Evaluation, evaluate_predictions
from finetune.samples import CorpusView, Expression, corpus_expressions
from wholegrain.errors import ConfigError, RecordError, run_cli

TASKS = ("rec", "grec", "coco")
_TOLERANCE = 1e-9


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = build_parser().parse_args(argv)
    _check_options(options)
    check_outputs(
        {"--write-questions": options.write_questions, "--out": options.out},
        {
            "the predictions file": options.predictions,
            "--against": options.against,
            "--corpus": options.corpus,
        },
    )
    if options.task == "coco":
        scores = detection_scores(options.truth, options.predictions, options.kind)
        _print(scores.to_dict() if options.json else scores.table())
        return 0
    asked = _asked(options)
    found = None if options.predictions is None else _figures(options, asked)
    # Last: all that is read has been read, and a full disk takes no figure along.
    if options.write_questions is not None:
        assert asked is not None
        write_questions(options.write_questions, asked)
        # What is on stdout is the figures, which with --json another program reads.
        print(f"{len(asked)} expressions written to {options.write_questions}", file=sys.stderr)
    if options.out is not None and found is not None:
        found.write(options.out)
    return 0


def _figures(
    options: argparse.Namespace, asked: Sequence[Any] | None
) -> Evaluation | SetEvaluation:
    """Evaluates the predictions, beside others if there are some, and prints what they are worth.

    Returns:
        The evaluation of the predictions.
    """
    found = _evaluate(options, options.predictions, options.boxes, asked)
    figures, text = found.to_dict(), found.table()
    if options.against is not None:
        other = _evaluate(options, options.against, options.against_boxes or options.boxes, asked)
        draws = {"resamples": options.resamples, "seed": options.seed}
        comparison = compare(found.sheet, other.sheet, **draws)
        figures["difference"] = comparison.to_dict()
        text += "\n\n" + comparison.table((options.predictions.name, options.against.name))
    _print(figures if options.json else text)
    return found


def evaluate_file(
    path: Path,
    expressions: Sequence[Expression] | None = None,
    *,
    reading: Reading | None = None,
    overlap: Overlap = "iou",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """The metrics of a predictions file.

    Args:
        path: the file.
        expressions: what was asked; None takes the truth from the file.
        reading: the convention of the file's boxes; None: xyxy pixels.
        overlap: what thresholds are compared with.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: a malformed line, an id that is missing, repeated or unknown, boxes that are not
            in the convention, or a stored IoU that is not that of the boxes beside it.
    """
    reading = reading or Reading()
    answers = read_predictions(path) if expressions is None else match_answers(path, expressions)
    evaluation = evaluate_predictions(
        _as_pixels(answers, reading), overlap=overlap, resamples=resamples, seed=seed
    )
    if reading.convention == PIXELS:
        _check_stored(answers, evaluation)
    return evaluation


def evaluate_set_file(
    path: Path,
    expressions: Sequence[SetExpression] | None = None,
    *,
    reading: Reading | None = None,
    min_score: float = MIN_SCORE,
    overlap: Overlap = "iou",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SetEvaluation:
    """The metrics of a predictions file of generalized grounding; as `evaluate_file`."""
    predictions = read_set_predictions(path, expressions, reading or Reading())
    return evaluate_sets(
        predictions, min_score=min_score, overlap=overlap, resamples=resamples, seed=seed
    )


def _evaluate(
    options: argparse.Namespace,
    path: Path,
    convention: str,
    asked: Sequence[Any] | None,
) -> Evaluation | SetEvaluation:
    reading = Reading(convention, options.resized, options.trust_boxes)
    common = {
        "reading": reading,
        "overlap": options.overlap,
        "resamples": options.resamples,
        "seed": options.seed,
    }
    if options.task == "grec":
        return evaluate_set_file(path, asked, min_score=options.min_score, **common)
    return evaluate_file(path, asked, **common)


def _asked(options: argparse.Namespace) -> Sequence[Expression] | Sequence[SetExpression] | None:
    if options.corpus is None:
        return None
    from wholegrain.data.corpus import Corpus

    corpus: CorpusView = Corpus.open(options.corpus).select(options.split)
    if options.task == "grec":
        return set_expressions(corpus)
    return corpus_expressions(corpus, grains=(options.grain,))


def _as_pixels(answers: Answers, reading: Reading) -> list[Prediction]:
    """The predictions with their boxes turned from the convention into xyxy pixels."""
    predictions = answers.predictions
    nothing = (np.nan,) * 4
    truth = np.array([one.truth for one in predictions], dtype=np.float64).reshape(-1, 4)
    given = np.array([one.box is not None for one in predictions], dtype=bool)

    def mean_iou(pixels: Array) -> float:
        return float(merged_iou(pixels[given], truth[given]).mean())

    boxes = reading.to_pixels(
        np.array([one.box or nothing for one in predictions], dtype=np.float64),
        np.array([(one.width, one.height) for one in predictions], dtype=np.float64),
        answers.resized,
        answers.where,
        mean_iou,
    )
    return [
        one if one.box is None else replace(one, box=tuple(box))
        for one, box in zip(predictions, boxes.tolist(), strict=True)
    ]


def _check_stored(answers: Answers, evaluation: Evaluation) -> None:
    """A file whose IoU and boxes disagree was edited, or is in another convention than it says."""
    merged, best = (evaluation.iou[protocol].tolist() for protocol in ("merged", "any"))
    for place, (iou, iou_any) in enumerate(answers.stored):
        for key, written, value in (("iou", iou, merged[place]), ("iou_any", iou_any, best[place])):
            if written is not None and abs(written - value) > _TOLERANCE:
                remedy = f"its boxes give {value:.6g}; name their convention with --boxes"
                raise RecordError(answers.where(place), key, written, remedy)


def _print(found: dict[str, Any] | str) -> None:
    print(found if isinstance(found, str) else json.dumps(found, indent=1, allow_nan=False))


def _check_options(options: argparse.Namespace) -> None:
    """ConfigError for options that cannot be meant together."""
    if not 1 <= options.resamples <= MAX_RESAMPLES:
        raise ConfigError(
            f"--resamples is {options.resamples}; it must lie in 1..{MAX_RESAMPLES:,}, of which "
            f"{RESAMPLES:,} are plenty"
        )
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}; it must be 0 or more")
    if not math.isfinite(options.min_score):
        raise ConfigError(f"--min-score is {options.min_score}; it must be a number")
    if options.task == "coco":
        if options.predictions is None or options.truth is None:
            raise ConfigError("--task coco needs a results file and --truth instances_*.json")
        for name in ("corpus", "write_questions", "against", "out"):
            if getattr(options, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is not for --task coco; leave it out")
        return
    if options.truth is not None:
        raise ConfigError("--truth is for --task coco; the truth of rec and grec is a --corpus")
    if options.corpus is None:
        if options.write_questions is not None:
            raise ConfigError("--write-questions lists the expressions of a corpus: add --corpus")
        if options.split is not None:
            raise ConfigError(f"--split {options.split} is of a corpus: add --corpus")
    if options.predictions is None:
        if options.write_questions is None:
            raise ConfigError("nothing to do: name a predictions file, or --write-questions FILE")
        if options.against is not None:
            raise ConfigError("--against needs a predictions file to compare with")
        if options.out is not None:
            raise ConfigError("--out writes the predictions that are evaluated: name their file")


def _size(text: str) -> Size:
    try:
        width, height = (float(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1000x600") from None
    if not (0 < width < 1e6 and 0 < height < 1e6):
        raise argparse.ArgumentTypeError(f"{text!r}: both sides must be positive")
    return width, height


def _epilog() -> str:
    lines = ["conventions of --boxes: ORDER_UNIT, for instance yxyx_1000", ""]
    lines += [f"  {name:<10}{about}" for name, about in BOXES.items()]
    lines += ["", *(f"  {name:<10}{about}" for name, about in UNITS.items())]
    lines += [
        "",
        "A box that lies far outside its image ends the evaluation with the line and the value,",
        "and so do boxes that fit another convention far better; the message names it.",
    ]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.evaluate",
        description=__doc__,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("predictions", nargs="?", type=Path, help="JSON lines, one an expression; coco: results")
    add("--task", choices=TASKS, default="rec", help="one box; any number of them; detection")

    asked = parser.add_argument_group("what was asked")
    add = asked.add_argument
    add("--corpus", type=Path, metavar="DIR", help="shards that hold expressions and truth")
    add("--split", help="of the corpus, for instance testA")
    add("--grain", choices=("region", "object"), default="region", help="phrases or names (rec)")
    add("--write-questions", type=Path, metavar="FILE", help="write the ids and texts to answer")
    add("--truth", type=Path, metavar="FILE", help="instances_*.json (coco)")
    add("--kind", choices=KINDS, default="bbox", help="boxes or masks (coco)")

    boxes = parser.add_argument_group("how boxes are written")
    add = boxes.add_argument
    add("--boxes", choices=CONVENTIONS, default=PIXELS, metavar="ORDER_UNIT", help="see below")
    add("--resized", type=_size, metavar="WxH", help="for *_resized, where lines have no `resized`")
    add("--trust-boxes", action="store_true", help="measure boxes as declared, however unlikely")

    figures = parser.add_argument_group("figures")
    add = figures.add_argument
    add("--overlap", choices=OVERLAPS, default="iou", help="giou: as MDETR and gRefCOCO count hits")
    add("--min-score", type=float, default=MIN_SCORE, help="of boxes that count (grec)")
    add("--against", type=Path, metavar="FILE", help="other predictions: the paired difference")
    add("--against-boxes", choices=CONVENTIONS, metavar="ORDER_UNIT", help="default: as --boxes")
    add("--resamples", type=int, default=RESAMPLES, help="bootstrap draws")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--json", action="store_true", help="all figures and slices as JSON")
    add("--out", type=Path, metavar="FILE", help="write predictions and truth in our format")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
