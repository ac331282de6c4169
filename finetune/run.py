"""A finetuning run, from release to release."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from finetune.config import CorpusConfig, FinetuneConfig
from finetune.evaluation import evaluate
from finetune.grounding import GroundingModule, predictor, training_stream
from finetune.leaks import leak_statement
from finetune.outcome import Outcome, measure_all, publish
from finetune.samples import corpus_expressions
from finetune.start import starting_model
from finetune.work import GroundingWork
from wholegrain.config import to_dict
from wholegrain.data import storage
from wholegrain.data.corpus import Corpus
from wholegrain.data.leak_audit import STATEMENT
from wholegrain.data.skips import SkipLedger
from wholegrain.errors import ConfigError
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer
from wholegrain.train.command import Command
from wholegrain.train.dry_run import timed_steps
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Stage, fit
from wholegrain.train.meters import SkippedSamples
from wholegrain.train.open_run import OpenRun
from wholegrain.train.optim import OwnGroup
from wholegrain.train.program import run_stage
from wholegrain.train.run_folder import prepare_run_folder
from wholegrain.train.speed import prepare_model


def finetune(command: Command[FinetuneConfig]) -> int:
    """Trains, evaluates every split exactly once an expression, releases and reports."""
    return run_stage(command, plan_run, train)


def train(command: Command[FinetuneConfig], engine: Engine, folder: OpenRun) -> None:
    """The whole run, in a folder that it holds."""
    config = command.config
    corpus, leak_audit = open_training(config)
    # Unknown, empty and damaged splits end the run here, not after hours of training.
    splits = open_splits(config.data.evaluate)
    model, tokenizer = starting_model(config, corpus)
    prepare_model(model, config.run)
    stage = grounding_stage(config, corpus, model, tokenizer, engine)
    if leak_audit:
        stage.files[STATEMENT] = leak_audit
    folder.check()
    prepare_run_folder(folder.out, config, engine.world, write=engine.is_main)
    fit(stage, config.run, config.optim, engine, folder)
    predict = predictor(model, tokenizer, config.data.max_tokens, engine.device)
    results = measure_all(config, predict, corpus, splits, model.config.vision.image_size)
    folder.check()
    if engine.is_main:
        outcome = Outcome(command, corpus, splits, model, tokenizer, results, leak_audit)
        publish(outcome, folder.out, engine.world)


def plan_run(command: Command[FinetuneConfig], engine: Engine) -> str:
    """A few real steps, of which nothing is kept, and what the run will be.

    With ``--world-size`` they are rank 0's share of the steps of so many ranks.
    """
    config = command.config
    corpus, _ = open_training(config)
    open_splits(config.data.evaluate)
    model, tokenizer = starting_model(config, corpus)
    prepare_model(model, config.run)
    stage = grounding_stage(config, corpus, model, tokenizer, engine, planned=command.world_size)
    return timed_steps(stage, config.run, config.optim, engine, command.world_size)


def open_training(config: FinetuneConfig) -> tuple[Corpus, str]:
    """The training split, and what the leak audit says of it."""
    if config.data.storage is not None:
        storage.configure(config.data.storage)
    corpus = open_split(config.data.train)
    return corpus, leak_statement(config, corpus)


def open_split(corpus: CorpusConfig) -> Corpus:
    """The corpus, or its split."""
    opened = Corpus.open(corpus.path)
    return opened.select(corpus.split) if corpus.split else opened


def open_measured(corpus: CorpusConfig) -> Corpus:
    """As `open_split`, of what is evaluated: before training, all that this will ask is listed.

    Raises:
        DataError: there is no expression, two records share an id, or a record is damaged.
    """
    opened = open_split(corpus)
    corpus_expressions(opened)
    return opened


def open_splits(corpora: Sequence[CorpusConfig]) -> dict[str, Corpus]:
    """What is evaluated, by the label that its tables and files carry.

    Raises:
        ConfigError: two have one label.
        DataError: one cannot be evaluated, see `open_measured`.
    """
    labels = [corpus.label for corpus in corpora]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"data.evaluate: {labels.count(label)} entries are called {label!r}; give each a "
                "name of its own (`name: ...`)"
            )
    return dict(zip(labels, map(open_measured, corpora), strict=True))


def grounding_stage(
    config: FinetuneConfig,
    corpus: Corpus,
    model: MultiGrainModel,
    tokenizer: Tokenizer,
    engine: Engine,
    planned: int | None = None,
) -> Stage:
    """What the loop trains.

    Args:
        config, corpus, model, tokenizer: the run's.
        engine: where it trains.
        planned: ranks of a run of which this process takes the first one's part.
    """
    rank, world = (engine.rank, engine.world) if planned is None else (0, planned)
    ledgers: list[SkipLedger] = []
    stream = training_stream(config, corpus, model, tokenizer, ledgers)
    validation = open_measured(config.data.validation) if config.data.validation else None
    predict = predictor(model, tokenizer, config.data.max_tokens, engine.device)

    def validate() -> Mapping[str, float]:
        assert validation is not None
        size = model.config.vision.image_size
        return evaluate(predict, validation, resolution=size, resamples=1).summary().values

    module = GroundingModule(model, config.loss)
    return Stage(
        name="finetune",
        module=module,
        model=model,
        batches=lambda start, stop: stream(start, stop, rank, world),
        validate=validate if validation is not None else None,
        facts={
            "corpus": corpus.fingerprint,
            "seed": config.run.seed,
            "batch_size": config.run.batch_size,
            "accumulation": config.run.accumulation,
            "steps": config.run.steps,
        },
        files={
            "config.json": json.dumps(to_dict(model.config), indent=1),
            "tokenizer.json": tokenizer.to_json(),
        },
        adapters=list(model.adapters.parameters()),
        loss=module.paced,
        own=_own_groups(module),
        work=GroundingWork(model, engine.device),
        skipped=SkippedSamples(ledgers).take,
        config=to_dict(config),
    )


def _own_groups(module: GroundingModule) -> list[OwnGroup]:
    """What the loss learns has a rate and a clipping of its own."""
    if module.paced is None:
        return []
    paced = module.paced.config
    return [OwnGroup("self_paced", list(module.paced.parameters()), paced.lr, paced.clip)]
