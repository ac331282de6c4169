"""A pretraining run, from config to release and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from pretrain.config import PretrainConfig
from pretrain.data import PretrainData, open_data
from pretrain.objective import PretrainingModule
from pretrain.validate import validate
from wholegrain.config import dump_config, to_dict
from wholegrain.errors import ConfigError
from wholegrain.hub.card import Card
from wholegrain.hub.release import save_release
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.report import Report, ResultTable, write_report
from wholegrain.text import Tokenizer
from wholegrain.train import checkpoint
from wholegrain.train.command import Command
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Stage, fit, timed_steps
from wholegrain.train.meters import METRICS
from wholegrain.train.run_folder import environment, prepare_run_folder


def pretrain(command: Command[PretrainConfig]) -> int:
    """Trains, validates, releases and reports."""
    config, out = command.config, Path(command.config.out)
    engine = Engine(config.run)
    data = open_data(config, tokenizer=_tokenizer_of(out))
    config = fit_vocabulary(config, data.tokenizer)
    torch.manual_seed(config.run.seed)
    model = MultiGrainModel(config.model)
    stage = pretraining_stage(config, data, model, engine)
    if command.dry_run:
        plan = timed_steps(stage, config.run, config.optim, engine)
        if engine.is_main:
            print(describe(data), plan, sep="\n")
        return 0
    prepare_run_folder(out, config, engine.world, write=engine.is_main)
    fit(stage, config.run, config.optim, engine, out)
    if engine.is_main:
        finish(command, config, data, model, out, engine.world)
    engine.close()
    return 0


def pretraining_stage(
    config: PretrainConfig, data: PretrainData, model: MultiGrainModel, engine: Engine
) -> Stage:
    """What the loop trains."""

    def measure() -> dict[str, float]:
        batches = data.validation_stream(engine.rank, engine.world)
        return validate(model, batches, config.objective, engine.device)

    return Stage(
        name="pretrain",
        module=PretrainingModule(model, config.objective, data.capacity(engine.world)),
        model=model,
        batches=lambda start, stop: data.stream(start, stop, engine.rank, engine.world),
        validate=measure if data.validation is not None else None,
        facts={
            "corpora": data.fingerprints(),
            "seed": config.run.seed,
            "batch_size": config.run.batch_size,
            "accumulation": config.run.accumulation,
            "steps": config.run.steps,
        },
        files={
            "config.json": json.dumps(to_dict(config.model), indent=1),
            "tokenizer.json": data.tokenizer.to_json(),
        },
    )


def describe(data: PretrainData) -> str:
    """What is read, in two lines."""
    run = data.config.run
    paths = [corpus.path for corpus in data.config.data.train]
    sizes = [len(source.corpus) for source in data.sources]
    total = sum(sizes)
    names = ", ".join(f"{p} ({size:,})" for p, size in zip(paths, sizes, strict=True))
    return (
        f"corpora      {names}; {data.tokenizer.vocab_size:,} word pieces\n"
        f"epochs       {run.steps * run.batch_size / total:.1f} of {total:,} images"
    )


def fit_vocabulary(config: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """Gives the model as many word embeddings as the tokenizer has pieces.

    Raises:
        ConfigError: the tokenizer was named by the user and does not fit the model's size.
    """
    text = config.model.text
    if text.vocab_size == tokenizer.vocab_size:
        return config
    if config.data.tokenizer.vocab is not None:
        raise ConfigError(
            f"model.text.vocab_size is {text.vocab_size}, {config.data.tokenizer.vocab} has "
            f"{tokenizer.vocab_size} pieces; set model.text.vocab_size to that"
        )
    text = dataclasses.replace(text, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


def finish(
    command: Command[PretrainConfig],
    config: PretrainConfig,
    data: PretrainData,
    model: MultiGrainModel,
    out: Path,
    world: int,
) -> None:
    """Writes the release and the report."""
    figures = _last_validation(out / METRICS)
    table = ResultTable(
        name="Validation at the end",
        columns=("figure", "value"),
        rows=[(n, "not finite" if v is None else v) for n, v in figures.items()],
        note="Measured on the validation split, without augmentation.",
        command=command.line,
    )
    results = [table] if figures else []
    names = ", ".join(Path(corpus.path).name for corpus in config.data.train)
    card = Card(
        title=f"wholegrain, pretrained on {names}",
        summary="Pretrained on image captions, region phrases and object labels at once.",
        manifests=[dict(corpus.manifest) for corpus in data.corpora],
        recipe=dump_config(config),
        command=command.line,
        results=results,
    )
    save_release(
        out / "release",
        model,
        data.tokenizer,
        card=card,
        extras={"max_tokens": config.data.max_tokens},
        overwrite=True,
    )
    report = Report(
        title="Pretraining",
        command=command.line,
        config_yaml=dump_config(config),
        metrics_path=out / METRICS,
        results=results,
        environment=environment(world),
    )
    write_report(out / "report.html", report)


def _last_validation(path: Path) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["split"] == "val":
            figures = {k: v for k, v in entry.items() if k not in {"step", "split"}}
    return figures


def _tokenizer_of(out: Path) -> Tokenizer | None:
    found = checkpoint.latest(out)
    return Tokenizer.load(found.folder / "tokenizer.json") if found else None
