"""What a finetuning run leaves: predictions, figures with their baselines, release, report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.config import FinetuneConfig
from finetune.constant_box import constant_baseline
from finetune.evaluation import Predict, evaluate, hide_photo, hide_words
from finetune.predictions import Prediction
from finetune.results import Evaluation
from finetune.samples import corpus_expressions
from wholegrain.config import dump_config
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image
from wholegrain.data.leak_audit import release_extras
from wholegrain.hub.additions import save_additions
from wholegrain.hub.card import Card
from wholegrain.hub.release import CHECKSUMS, save_release
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.report import Case, Cell, Estimate, Report, ResultTable, write_report
from wholegrain.text import Tokenizer
from wholegrain.train.command import Command
from wholegrain.train.journal import METRICS
from wholegrain.train.run_folder import environment, replace_text

MODEL, CONSTANT = "model", "best constant box of the training set"
NO_PHOTO, NO_WORDS = "same model, photo hidden", "same model, words hidden"
_CASES = 12  # photos under each heading; the page shows six in a row


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    command: Command[FinetuneConfig]
    train: Corpus
    splits: Mapping[str, Corpus]
    model: MultiGrainModel
    tokenizer: Tokenizer
    results: Mapping[str, Mapping[str, Evaluation]]
    """Split -> what was measured -> its evaluation."""
    leak_audit: str = ""
    """What is known of evaluation photos among the training photos, see `leaks`."""


def measure_all(
    config: FinetuneConfig,
    predict: Predict,
    train: Corpus,
    splits: Mapping[str, Corpus],
    resolution: int,
) -> dict[str, dict[str, Evaluation]]:
    """Evaluates the model and its baselines on every split; every process gets all of it."""
    learnt_from = corpus_expressions(train)
    results = {}
    for name, corpus in splits.items():
        measured = {MODEL: evaluate(predict, corpus, resolution=resolution)}
        if config.hidden_input_baselines:
            blind, deaf = hide_photo(predict), hide_words(predict)
            measured[NO_PHOTO] = evaluate(blind, corpus, resolution=resolution)
            measured[NO_WORDS] = evaluate(deaf, corpus, resolution=resolution)
        _, constant = constant_baseline(learnt_from, corpus_expressions(corpus))
        measured[CONSTANT] = constant
        results[name] = measured
    return results


def publish(outcome: Outcome, out: Path, world: int) -> None:
    """Writes predictions, ``results.json``, the release and the report, and prints the figures."""
    config, command = outcome.command.config, outcome.command
    for split, measured in outcome.results.items():
        # A label may be a path; the file stays in the folder all the same.
        measured[MODEL].write(out / "predictions" / f"{split.strip('/').replace('/', '_')}.jsonl")
        print(f"\n{split}\n{measured[MODEL].table()}")
        for name, evaluation in measured.items():
            print(f"{100 * evaluation.summary().accuracy:6.2f} % Acc@0.5, merged box: {name}")
    plain = {
        split: {name: evaluation.to_dict() for name, evaluation in measured.items()}
        for split, measured in outcome.results.items()
    }
    replace_text(out / "results.json", json.dumps(plain, indent=1))
    tables = [result_table(name, m, command.line) for name, m in outcome.results.items()]
    card = Card(
        title="wholegrain, finetuned for grounding",
        summary="Finds what an expression describes in a photo: expression in, box out.",
        manifests=[dict(outcome.train.manifest)],
        recipe=dump_config(config),
        command=command.line,
        results=tables,
        leak_audit=outcome.leak_audit,
    )
    save_release(
        out / "release",
        outcome.model,
        outcome.tokenizer,
        card=card,
        extras={"max_tokens": config.data.max_tokens, **release_extras(outcome.leak_audit)},
        overwrite=True,
    )
    cases: dict[str, list[Case]] = {}
    for split, measured in outcome.results.items():
        cases |= cases_of(split, measured[MODEL], outcome.splits[split])
    report = Report(
        title="Grounding",
        command=command.line,
        config_yaml=dump_config(config),
        metrics_path=out / METRICS,
        results=tables,
        cases=cases,
        environment=environment(world),
    )
    write_report(out / "report.html", report)
    # Last: the base may be gone by now, and the rest does not need it.
    _publish_additions(outcome, out)


def _publish_additions(outcome: Outcome, out: Path) -> None:
    """Where only additions to a release were learnt, they are kept by themselves as well."""
    config = outcome.command.config
    if config.train_host or config.init is None or not (Path(config.init) / CHECKSUMS).exists():
        return
    save_additions(
        out / "additions",
        outcome.model,
        config.init,
        extras={"max_tokens": config.data.max_tokens, **release_extras(outcome.leak_audit)},
        overwrite=True,
    )


def result_table(split: str, measured: Mapping[str, Evaluation], command: str) -> ResultTable:
    """A split's figures; everything below the model is what it must be compared with."""
    columns = ("", "Acc@0.5", "Acc@0.75", "Acc@0.9", "mean IoU", "Acc@0.5, any box")
    rows: list[tuple[Cell, ...]] = []
    for name, evaluation in measured.items():
        merged, best = evaluation.summary("merged"), evaluation.summary("any")
        estimates = [
            Estimate(merged.values[key], *merged.intervals[key])
            for key in ("acc@0.5", "acc@0.75", "acc@0.9", "mean_iou")
        ]
        any_box = Estimate(best.accuracy, *best.intervals["acc@0.5"])
        rows.append((name, *estimates, any_box))
    summary = measured[MODEL].summary()
    return ResultTable(
        name=split,
        columns=columns,
        rows=rows,
        baselines=tuple(range(1, len(rows))),
        note=(
            f"{summary.expressions:,} expressions on {summary.images:,} photos, each counted once. "
            "A phrase's boxes are merged into one; `any box` takes the best of them. "
            "Intervals: bootstrap over photos, 95 %."
        ),
        command=command,
    )


def cases_of(split: str, evaluation: Evaluation, corpus: Corpus) -> dict[str, list[Case]]:
    """Photos with predicted and true boxes: an even sample, the best, the worst."""
    overlap = evaluation.iou["merged"]
    order = np.argsort(-overlap, kind="stable")
    even = np.linspace(0, len(overlap) - 1, min(_CASES, len(order))).astype(int)
    chosen = {
        "a sample": even.tolist(),
        "best": _on_distinct_photos(order, evaluation.predictions),
        "worst": _on_distinct_photos(order[::-1], evaluation.predictions),
    }
    positions = {corpus.record(index).id: index for index in range(len(corpus))}

    def case(index: int) -> Case:
        one: Prediction = evaluation.predictions[index]
        where = positions[one.image]
        pixels = decode_image(corpus.image_bytes(where), one.image).pixels
        return Case(
            image=np.asarray(pixels),
            text=one.text,
            predicted=one.box,
            truth=one.truth,
            iou=float(overlap[index]),
            caption=f"{one.image}, score {one.score:.2f}",
        )

    return {f"{split}: {name}": [case(i) for i in rows] for name, rows in chosen.items()}


def _on_distinct_photos(order: Iterable[int], predictions: Sequence[Prediction]) -> list[int]:
    """The first of the order, one a photo: a page of one photo's phrases shows little."""
    chosen: dict[str, int] = {}
    for index in order:
        chosen.setdefault(predictions[index].image, int(index))
        if len(chosen) == _CASES:
            break
    return list(chosen.values())
