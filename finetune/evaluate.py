"""``python -m finetune.evaluate``: the figures of a predictions file, ours or another system's.

    python -m finetune.evaluate runs/x/predictions.jsonl
    python -m finetune.evaluate --corpus DIR --split val --write-questions questions.jsonl
    python -m finetune.evaluate answers.jsonl --corpus DIR --split val --boxes xyxy_1000

Without a corpus the truth is read from the file itself, as our evaluation writes it. With one, a
line needs only the `id` of its expression and a `box` (null: no answer).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.metrics import RESAMPLES
from finetune.predictions import (
    Answer,
    Prediction,
    check_complete,
    complete_prediction,
    match_answers,
    read_answers,
    write_questions,
)
from finetune.protocols import CONVENTIONS, to_pixels
from finetune.results import Evaluation, evaluate_predictions
from finetune.samples import Expression, corpus_expressions
from wholegrain.errors import ConfigError, run_cli

_PIXELS = "xyxy_pixels"
_TOLERANCE = 1e-9


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = build_parser().parse_args(argv)
    if options.resamples < 1:
        raise ConfigError(f"--resamples is {options.resamples}; it must be 1 or more")
    expressions = None
    if options.corpus is not None:
        expressions = _expressions(options.corpus, options.split, options.grain)
    if options.write_questions is not None:
        if expressions is None:
            raise ConfigError("--write-questions lists the expressions of a corpus: add --corpus")
        write_questions(options.write_questions, expressions)
        print(f"{len(expressions)} expressions written to {options.write_questions}")
    if options.predictions is None:
        if options.write_questions is None:
            raise ConfigError("nothing to do: name a predictions file, or --write-questions FILE")
        return 0
    found = evaluate_file(
        options.predictions,
        expressions,
        convention=options.boxes,
        resamples=options.resamples,
        seed=options.seed,
    )
    if options.out is not None:
        found.write(options.out)
    if options.json:
        json.dump(found.to_dict(), sys.stdout, indent=1)
        print()
    else:
        print(found.table())
    return 0


def evaluate_file(
    path: Path,
    expressions: Sequence[Expression] | None = None,
    *,
    convention: str = _PIXELS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """The metrics of a predictions file.

    Args:
        path: the file.
        expressions: what was asked; None takes the truth from the file.
        convention: of the file's answers, one of `finetune.protocols.CONVENTIONS`.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: a malformed line, an id that is missing, repeated or unknown, or a stored IoU
            that is not that of the boxes beside it.
    """
    answers = read_answers(path)
    if expressions is None:
        ids = list(dict.fromkeys(answer.id for answer in answers))
        check_complete((answer.id for answer in answers), ids, f"remove the repetition from {path}")
        predictions = [complete_prediction(answer) for answer in answers]
    else:
        predictions = match_answers(answers, expressions)
    evaluation = evaluate_predictions(
        _as_pixels(predictions, convention), resamples=resamples, seed=seed
    )
    if expressions is None and convention == _PIXELS:
        _check_stored(answers, evaluation)
    return evaluation


def _expressions(folder: Path, split: str | None, grain: str) -> list[Expression]:
    from wholegrain.data.corpus import Corpus

    return corpus_expressions(Corpus.open(folder).select(split), grains=(grain,))


def _as_pixels(predictions: Sequence[Prediction], convention: str) -> list[Prediction]:
    """The predictions with their boxes turned from `convention` into xyxy pixels."""
    nothing = (np.nan,) * 4
    boxes = to_pixels(
        np.array([one.box or nothing for one in predictions], dtype=np.float64),
        convention,
        np.array([one.width for one in predictions], dtype=np.float64),
        np.array([one.height for one in predictions], dtype=np.float64),
    )
    return [
        one if one.box is None else replace(one, box=tuple(box))
        for one, box in zip(predictions, boxes.tolist(), strict=True)
    ]


def _check_stored(answers: Sequence[Answer], evaluation: Evaluation) -> None:
    """A file whose IoU and boxes disagree was edited, or is in another convention than it says."""
    for key, protocol in (("iou", "merged"), ("iou_any", "any")):
        for answer, computed in zip(answers, evaluation.iou[protocol].tolist(), strict=True):
            stored = answer.number(key)
            if stored is not None and abs(stored - computed) > _TOLERANCE:
                remedy = f"its boxes give {computed:.6g}; name their convention with --boxes"
                raise answer.fields.error(key, stored, remedy)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("predictions", nargs="?", type=Path, help="one JSON line an expression")
    parser.add_argument("--boxes", choices=CONVENTIONS, default=_PIXELS, help="of the answers")
    parser.add_argument("--corpus", type=Path, help="folder of shards that holds the truth")
    parser.add_argument("--split", help="of the corpus, for instance val")
    parser.add_argument("--grain", choices=("region", "object"), default="region")
    parser.add_argument("--write-questions", type=Path, metavar="FILE", help="the ids to answer")
    parser.add_argument("--out", type=Path, help="write the predictions in our format")
    parser.add_argument("--json", action="store_true", help="all figures and slices as JSON")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap draws")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
