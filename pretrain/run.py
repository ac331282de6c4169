"""A pretraining run, from config to release and report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from pretrain.config import CorpusConfig, InitConfig, PretrainConfig
from pretrain.data import PretrainData, open_data
from pretrain.exchange import gather_of
from pretrain.objective import PretrainingModule
from pretrain.validate import validate
from pretrain.work import StepWork
from wholegrain.config import dump_config, to_dict
from wholegrain.data.leak_audit import STATEMENT, release_extras
from wholegrain.data.storage import file_name
from wholegrain.data.stream import Source, make_order
from wholegrain.errors import ConfigError
from wholegrain.hub.card import Card
from wholegrain.hub.release import save_release
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.report import Report, ResultTable, write_report
from wholegrain.text import Tokenizer
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint import Checkpoint
from wholegrain.train.command import Command
from wholegrain.train.dry_run import timed_steps
from wholegrain.train.engine import Engine
from wholegrain.train.journal import METRICS
from wholegrain.train.loop import Stage, fit
from wholegrain.train.meters import SkippedSamples
from wholegrain.train.open_run import OpenRun
from wholegrain.train.plan import check_world
from wholegrain.train.program import run_stage
from wholegrain.train.run_folder import environment, prepare_run_folder
from wholegrain.train.speed import prepare_model
from wholegrain.train.updates import ExtraUpdates

_ORIGIN = {
    "vision": "get Swin-B from https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    "swin_base_patch4_window7_224_22k.pth, or name another encoder's weights",
    "text": "get BERT with `hf download google-bert/bert-base-uncased --local-dir PATH`",
}


def pretrain(command: Command[PretrainConfig]) -> int:
    """Trains, validates, releases and reports."""
    return run_stage(command, plan_run, train)


def train(command: Command[PretrainConfig], engine: Engine, folder: OpenRun) -> None:
    """The whole run, in a folder that it holds."""
    config, data, model = prepare(command.config, engine, folder.begin)
    stage = pretraining_stage(config, data, model, engine)
    folder.check()
    prepare_run_folder(folder.out, config, engine.world, write=engine.is_main)
    fit(stage, config.run, config.optim, engine, folder)
    folder.check()
    if engine.is_main:
        finish(command, config, data, model, folder.out, engine.world)


def plan_run(command: Command[PretrainConfig], engine: Engine) -> str:
    """A few real steps, of which nothing is kept, and what the run will be.

    With ``--world-size`` they are rank 0's share of the steps of so many ranks.
    """
    world = command.world_size or engine.world
    run = command.config.run
    shared = {"run.batch_size": run.batch_size, **_shared(command.config)}
    check_world(shared, run.accumulation, world)
    newest = checkpoint.latest(Path(command.config.out))
    config, data, model = prepare(command.config, engine, newest)
    stage = pretraining_stage(config, data, model, engine, planned=command.world_size)
    nccl = engine.device.type == "cuda"
    gather = gather_of(data, model, config.objective, world, nccl)
    plan = timed_steps(stage, config.run, config.optim, engine, command.world_size, gather)
    return f"{describe(data)}\n{plan}"


def prepare(
    config: PretrainConfig, engine: Engine, begin: Checkpoint | None
) -> tuple[PretrainConfig, PretrainData, MultiGrainModel]:
    """Data and model, and the config with the vocabulary that was found.

    Args:
        config: as given.
        engine: where the run trains.
        begin: what it goes on from; without, the model starts from `init`.
    """
    tokenizer = Tokenizer.load(begin.folder / "tokenizer.json") if begin else None
    data = open_data(config, tokenizer=tokenizer)
    config = fit_vocabulary(config, data.tokenizer)
    torch.manual_seed(config.run.seed)
    model = MultiGrainModel(config.model)
    data.grid = model.vision.grid
    if begin is None:
        start_from(config.init, model, say=engine.is_main)
    prepare_model(model, config.run)
    return config, data, model


def pretraining_stage(
    config: PretrainConfig,
    data: PretrainData,
    model: MultiGrainModel,
    engine: Engine,
    planned: int | None = None,
) -> Stage:
    """What the loop trains.

    Args:
        config, data, model: from `prepare`.
        engine: where it trains.
        planned: ranks of a run of which this process takes the first one's part.
    """
    rank, world = (engine.rank, engine.world) if planned is None else (0, planned)
    capacity = data.capacity(world)

    def measure() -> dict[str, float]:
        batches = data.validation_stream(rank, world)
        return validate(model, batches, config.objective, engine.device)

    objective = config.objective
    return Stage(
        name="pretrain",
        module=PretrainingModule(model, objective, capacity),
        model=model,
        batches=lambda start, stop: data.stream(start, stop, rank, world),
        extra=region_updates(config, data, rank, world),
        validate=measure if data.validation is not None else None,
        facts={
            "corpora": data.fingerprints(),
            "seed": config.run.seed,
            "batch_size": config.run.batch_size,
            "accumulation": config.run.accumulation,
            "steps": config.run.steps,
            **_region_facts(config),
        },
        files={
            "config.json": json.dumps(to_dict(config.model), indent=1),
            "tokenizer.json": data.tokenizer.to_json(),
            **({STATEMENT: data.leak_audit} if data.leak_audit else {}),
        },
        work=StepWork(config.model, objective, capacity, engine.device),
        skipped=SkippedSamples(data.ledgers).take,
        limits={"model.temperature": (objective.min_temperature, objective.max_temperature)},
        shared=_shared(config),
        config=to_dict(config),
    )


def _shared(config: PretrainConfig) -> dict[str, int]:
    """What else ranks and accumulated parts share evenly."""
    shared = {}
    if config.data.max_concepts is not None:
        shared["data.max_concepts"] = config.data.max_concepts
    regions = config.data.region_updates
    if regions is not None:
        shared["data.region_updates.images"] = regions.images
        shared["data.region_updates.texts"] = regions.texts
    return shared


def region_updates(
    config: PretrainConfig, data: PretrainData, rank: int, world: int
) -> ExtraUpdates | None:
    """The updates on regions alone, where the config asks for them."""
    regions = config.data.region_updates
    if regions is None:
        return None
    return ExtraUpdates(
        name="region",
        batches=lambda start, stop: data.region_stream(start, stop, rank, world),
        images=regions.images,
        probability=regions.probability,
    )


def _region_facts(config: PretrainConfig) -> dict[str, object]:
    regions = config.data.region_updates
    if regions is None:
        return {}
    return {
        "region_images": regions.images,
        "region_texts": regions.texts,
        "region_probability": regions.probability,
    }


def start_from(init: InitConfig, model: MultiGrainModel, say: bool = True) -> None:
    """Loads the pretrained encoders that a fresh run starts from.

    Raises:
        ConfigError: one is not there; says where it comes from.
    """
    paths = {"vision": init.vision, "text": init.text}
    files = {name: Path(path) for name, path in paths.items() if path is not None}
    for name, path in files.items():
        if not path.exists():
            raise ConfigError(
                f"init.{name} is {str(path)!r}, which does not exist; {_ORIGIN[name]}, or set "
                f"init.{name} to null to start from nothing"
            )
    if not files:
        return
    from wholegrain.hub.backbones import load_backbones

    report = load_backbones(model, **files)
    if say:
        print(report)


def describe(data: PretrainData) -> str:
    """What is read, a line for each mixture."""
    config, run = data.config.data, data.config.run
    total = sum(len(source.corpus) for source in data.sources)
    vocabulary = f"{data.tokenizer.vocab_size:,} word pieces"
    lines = [
        f"corpora      {_named(config.train, data.sources)}; {vocabulary}",
        f"epochs       {run.steps * run.batch_size / total:.1f} of {total:,} images",
    ]
    if len(data.sources) > 1:  # each ends its epochs for itself
        epochs = make_order(run.seed, data.sources).epochs(run.steps * run.accumulation)
        pairs = zip(config.train, epochs, strict=True)
        lines[-1] += "; " + ", ".join(f"{entry.path} {count:.1f}" for entry, count in pairs)
    if config.region_updates is not None:
        lines.append(f"regions      {_named(config.region_updates.train, data.region_sources)}")
    return "\n".join(lines)


def _named(entries: Sequence[CorpusConfig], sources: Sequence[Source]) -> str:
    pairs = zip(entries, sources, strict=True)
    return ", ".join(f"{entry.path} ({len(source.corpus):,})" for entry, source in pairs)


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
    names = ", ".join(dict.fromkeys(file_name(corpus.path) for corpus in data.corpora))
    card = Card(
        title=f"wholegrain, pretrained on {names}",
        summary="Pretrained on image captions, region phrases and object labels at once.",
        manifests=list({c.path: dict(c.manifest) for c in data.corpora}.values()),
        recipe=dump_config(config),
        command=command.line,
        results=results,
        leak_audit=data.leak_audit,
    )
    save_release(
        out / "release",
        model,
        data.tokenizer,
        card=card,
        extras={"max_tokens": config.data.max_tokens, **release_extras(data.leak_audit)},
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
