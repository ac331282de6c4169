"""Answers every expression of a corpus with a release.

    python -m finetune.predict --model RELEASE --corpus DIR [--split S] [--out predictions.jsonl]

The file that it writes is what ``python -m finetune.evaluate`` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wholegrain.errors import run_cli


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune.predict", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="release folder")
    parser.add_argument("--additions", type=Path, help="what finetuning added to it, kept apart")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of shards")
    parser.add_argument("--split", help="which split; by default all samples")
    parser.add_argument("--grain", choices=("region", "object"), default="region")
    parser.add_argument(
        "--exit-quality",
        type=float,
        metavar="IOU",
        help="of ScanFormer: stop at the scale whose expected IoU reaches this (0 to 1)",
    )
    parser.add_argument("--out", type=Path, help="where to write predictions.jsonl")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates a release; returns the exit status."""
    arguments = build_parser().parse_args(argv)

    from rich.console import Console

    from finetune.evaluation import evaluate
    from finetune.grounding import predictor
    from finetune.predictions import check_outputs
    from finetune.scales import ScalesRead, stop_at
    from wholegrain.data.corpus import Corpus
    from wholegrain.predict import load

    inputs = {"--model": arguments.model, "--corpus": arguments.corpus}
    check_outputs({"--out": arguments.out}, inputs)
    corpus = Corpus.open(arguments.corpus)
    if arguments.split is not None:
        corpus = corpus.select(arguments.split)
    grounder = load(arguments.model, additions=arguments.additions)
    model = grounder.model
    if arguments.exit_quality is not None:
        stop_at(model, arguments.exit_quality)
    scales = ScalesRead()
    tokens, device = grounder.max_tokens, grounder.device
    predict = predictor(model, grounder.tokenizer, tokens, device, on_fused=scales)
    evaluation = evaluate(
        predict,
        corpus,
        resolution=model.config.vision.image_size,
        grains=(arguments.grain,),
    )
    print(evaluation.table())
    if scales:
        Console().print(scales.table())
    if arguments.out is not None:
        print(evaluation.write(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
