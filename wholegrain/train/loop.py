"""The loop. Everything optional stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from wholegrain.errors import WholegrainError
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.journal import Journal
from wholegrain.train.meters import Averages, Throughput, Work, across_ranks, memory_meter
from wholegrain.train.open_run import OpenRun
from wholegrain.train.optim import Optimizer, OwnGroup
from wholegrain.train.partitioned_adamw import Limits
from wholegrain.train.peaks import peak_flops
from wholegrain.train.preempt import StopRequest
from wholegrain.train.profile import StepProfile
from wholegrain.train.saving import (
    Saver,
    load_optimizer_of,
    load_weights_of,
    newest_of,
    owes_validation,
)
from wholegrain.train.updates import Batches, ExtraUpdates, Trainer, update_kinds
from wholegrain.train.vote import StopVote
from wholegrain.train.watchdog import Watchdog

_LONGER = 20  # times the patience of a step, for a validation or the end of a save


@dataclass
class Stage:
    """What differs between the stages that the loop trains."""

    name: str
    """Shown in the progress bar."""
    module: nn.Module
    """``module(batch)`` gives named scalar tensors, of which ``loss`` is the one minimised."""
    model: nn.Module
    """The part of `module` that checkpoints hold."""
    batches: Batches
    """``batches(a, b)`` gives this rank's parts a .. b - 1 of the global batches."""
    extra: ExtraUpdates | None = None
    """Updates on other batches before the main one of some steps; some of the parameters may then
    take no part in some of the updates."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """Called with the module in evaluation mode; every rank calls it, all get the same figures."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a resume must find unchanged: fingerprints, seed, batch size."""
    files: dict[str, str] = field(default_factory=dict)
    """Texts stored with each checkpoint."""
    adapters: Sequence[nn.Parameter] = ()
    """Parameters with the adapters' rate."""
    own: Sequence[OwnGroup] = ()
    """Parameters of `module` with a rate and a clipping of their own, such as a loss's."""
    loss: nn.Module | None = None
    """The part of `module` whose parameters are numbers that the loss learns; checkpoints hold them
    beside the model."""
    work: Callable[[Any], Work] | None = None
    """What a batch asks of a rank, counted before it leaves the host; for the meters."""
    skipped: Callable[[], Mapping[str, float]] = dict
    """Bad samples of this rank since the last look, by cause."""
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """Bounds that parameters of `module` are kept in, by name."""
    shared: Mapping[str, int] = field(default_factory=dict)
    """Settings, besides the batch size, that ranks and parts must share evenly."""
    config: Mapping[str, Any] | None = None
    """As resolved, for services that show it."""


class Interrupted(WholegrainError):
    """The run was asked to stop and has saved itself; starting it again continues."""

    exit_status = 75
    """EX_TEMPFAIL: lets a scheduler's script tell this from a mistake."""


def fit(stage: Stage, run: RunConfig, optim: OptimConfig, engine: Engine, folder: OpenRun) -> int:
    """Trains from the folder's checkpoint, or from the start, to `run.steps`.

    Returns:
        The step that the run began at.

    Raises:
        Interrupted: after SIGTERM or SIGUSR1, with a checkpoint written.
        CheckpointError: the last checkpoint could not be written.
        RankDivergence: the ranks' weights are no longer the same.
        WholegrainError: too many non-finite updates in a row.
    """
    # A model that comes from a release is in evaluation mode.
    stage.module.train().to(engine.device)
    load_weights_of(folder.begin, stage)
    trainer = make_trainer(stage, run, optim, engine, Averages())
    start = load_optimizer_of(folder.begin, trainer)
    with ExitStack() as within:
        _Loop(stage, run, engine, folder, trainer, start, within).train()
    engine.unwrap(stage.module)
    engine.share_buffers(stage.module)
    return start


def make_trainer(
    stage: Stage, run: RunConfig, optim: OptimConfig, engine: Engine, averages: Averages
) -> Trainer:
    """Optimizer, wrapped module and meters of a stage whose weights are loaded."""
    optimizer = Optimizer(
        stage.module,
        optim,
        run.steps,
        stage.adapters,
        own=stage.own,
        run=run,
        limits=stage.limits,
    )
    wrapped = engine.wrap(stage.module, optimizer, some_unused=stage.extra is not None)
    peak, _ = peak_flops(engine.device, run.precision, run.peak_tflops)
    speed = Throughput(peak_flops=peak, memory=memory_meter(engine.device))
    return Trainer(wrapped, run, engine, optimizer, averages, speed, stage.work)


class _Loop:
    """The steps of one start of a run."""

    def __init__(
        self,
        stage: Stage,
        run: RunConfig,
        engine: Engine,
        folder: OpenRun,
        trainer: Trainer,
        start: int,
        within: ExitStack,
    ) -> None:
        self._stage, self._run, self._engine = stage, run, engine
        self._folder, self._trainer, self._start = folder, trainer, start
        enter, out = within.enter_context, folder.out
        self._journal = enter(
            Journal(
                out,
                run.steps,
                start,
                stage.name,
                engine.is_main,
                wandb=run.wandb,
                config=stage.config,
                check=folder.check,
            )
        )
        folder.retire()  # from here on nothing refuses the run, and it writes
        say = self._journal.note
        # First in, last out: it also bounds the end of what follows.
        self._watchdog = enter(Watchdog(run.patience_s, engine.rank))
        self._vote = enter(StopVote(engine.world))
        self._saver = enter(Saver(stage, run, engine, trainer, folder, say))
        self._profile = enter(StepProfile(run.profile, out, engine.rank, say))
        self._stop = enter(StopRequest())
        self._kinds = update_kinds(stage.batches, stage.extra, run, start, run.steps)

    def train(self) -> None:
        """Takes the steps that are left."""
        run, stage, stopped, done = self._run, self._stage, False, self._start
        if stage.validate is not None and owes_validation(self._folder):
            self._validate(self._start)
        for step in range(self._start, run.steps):
            self._watchdog.beat(f"step {step + 1}")
            for kind in self._kinds:
                if kind.due(step):
                    self._trainer.update(kind, step)
            self._trainer.speed.step()
            self._profile.step()
            done = step + 1
            if done % run.log_every == 0 or done == run.steps:
                self._report(done)
            validating = stage.validate is not None and _due(done, run.validate_every, run.steps)
            # A validation may take longer than whoever stops the run gives it to save itself. So
            # it waits for all votes, and a stop leaves it to the next start.
            stopping = self._vote.cast(self._stop.received is not None, at_once=validating)
            if validating and not stopping:
                self._validate(done)
            if _due(done, run.save_every, run.steps) or stopping:
                self._save(done, owed=validating and stopping)
            elif run.compare_ranks_every and done % run.compare_ranks_every == 0:
                self._saver.compare(done)
            stopped = stopping and (validating or done < run.steps)
            if stopped:
                break
        with self._watchdog.longer("the end of the last checkpoint", _LONGER):
            self._saver.wait()
        if stopped:
            raise Interrupted(f"stopped at step {done} by a signal; run again to continue")

    def _report(self, done: int) -> None:
        trainer, engine = self._trainer, self._engine
        means = trainer.averages.take_over(engine.mean)
        self._name_outliers()
        own = {**trainer.speed.take(), **self._stage.skipped()}
        rates = trainer.optimizer.rates()
        self._journal.write(done, "train", {**means, **across_ranks(own, engine.device), **rates})
        lost = trainer.lost.longest()
        if lost > self._run.max_skipped:
            self._saver.settle()
            raise WholegrainError(
                f"the loss or its gradient was not finite for {lost} updates in a row; lower "
                "optim.lr or look at the data; the last good checkpoint is "
                f"{newest_of(self._folder)}"
            )

    def _validate(self, done: int) -> None:
        with (
            self._watchdog.longer(f"the validation after step {done}", _LONGER),
            self._trainer.speed.paused("validation"),
        ):
            self._journal.write(done, "val", validated(self._stage, self._engine))

    def _name_outliers(self) -> None:
        for step, norm in self._trainer.outliers.take():
            self._journal.outlier(step, norm)

    def _save(self, done: int, owed: bool) -> None:
        with (
            self._watchdog.longer(f"the checkpoint of step {done}", _LONGER),
            self._trainer.speed.paused("checkpoint"),
        ):
            # Those since the last line are known to this start alone.
            self._name_outliers()
            self._saver.save(done, owed)


def validated(stage: Stage, engine: Engine) -> dict[str, float]:
    """The stage's validation figures, with the module in evaluation mode and back."""
    assert stage.validate is not None
    engine.share_buffers(stage.module)
    stage.module.eval()
    with engine.whole(stage.module), torch.no_grad():
        figures = dict(stage.validate())
    stage.module.train()
    return figures


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)
