"""The loop. Everything optional stands beside it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wholegrain.errors import CheckpointError, WholegrainError
from wholegrain.train import checkpoint
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.meters import Averages, Journal, Throughput
from wholegrain.train.optim import Optimizer
from wholegrain.train.preempt import StopRequest
from wholegrain.train.updates import Batches, ExtraUpdates, Trainer, UpdateKind

_TIMED = 3  # updates of each kind in a dry run; the first warms up and is not counted


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


class Interrupted(WholegrainError):
    """The run was asked to stop and has saved itself; starting it again continues."""

    exit_status = 75
    """EX_TEMPFAIL: lets a scheduler's script tell this from a mistake."""


def fit(stage: Stage, run: RunConfig, optim: OptimConfig, engine: Engine, out: Path) -> int:
    """Trains from the newest complete checkpoint, or from the start, to `run.steps`.

    Returns:
        The step that the run began at.

    Raises:
        Interrupted: after SIGTERM or SIGUSR1, with a checkpoint written.
        WholegrainError: too many non-finite updates in a row.
    """
    optimizer = Optimizer(stage.module, optim, run.steps, stage.adapters)
    # A model that comes from a release is in evaluation mode.
    stage.module.train().to(engine.device)
    averages, speed = Averages(), Throughput()
    start = _resume(stage, optimizer, averages, out)
    wrapped = engine.wrap(stage.module, some_unused=stage.extra is not None)
    trainer = Trainer(wrapped, run, engine, optimizer, averages, speed)
    with (
        Journal(out, run.steps, start, stage.name, engine.is_main) as journal,
        StopRequest() as stop,
    ):
        kinds = _kinds(stage, run, start, run.steps)
        for step in range(start, run.steps):
            for kind in kinds:
                if kind.due(step):
                    rate = trainer.update(kind, step)
            done = step + 1
            if done % run.log_every == 0 or done == run.steps:
                means = engine.mean({**averages.take(), **speed.take()})
                journal.write(done, "train", {**means, "learning_rate": rate})
                _stop_if_lost(max(int(kind.lost_in_a_row) for kind in kinds), run, out)
            if _due(done, run.validate_every, run.steps) and stage.validate is not None:
                journal.write(done, "val", validated(stage, engine))
                speed.take()
            interrupted = engine.any(stop.received is not None)
            if _due(done, run.save_every, run.steps) or interrupted:
                _save(stage, optimizer, averages, engine, out, done, run.keep)
            if interrupted and done < run.steps:
                raise Interrupted(f"stopped at step {done} by a signal; run again to continue")
    engine.share_buffers(stage.module)
    return start


def timed_steps(stage: Stage, run: RunConfig, optim: OptimConfig, engine: Engine) -> str:
    """Takes a few real steps, keeps nothing, and says what the run will be."""
    optimizer = Optimizer(stage.module, optim, run.steps, stage.adapters)
    wrapped = engine.wrap(stage.module.train().to(engine.device), stage.extra is not None)
    trainer, extra = Trainer(wrapped, run, engine, optimizer), stage.extra
    shares = [1.0] if extra is None else [extra.probability, 1.0]
    always = None if extra is None else replace(extra, probability=1.0)
    kinds = _kinds(replace(stage, extra=always), run, 0, _TIMED)
    seconds = 0.0
    for share, kind in zip(shares, kinds, strict=True):
        times: list[float] = []
        for step in range(_TIMED):
            start = time.perf_counter()
            trainer.update(kind, step)
            engine.synchronise()
            times.append(time.perf_counter() - start)
        seconds += share * min(times[1:])
    samples = run.steps * (run.batch_size + (extra.probability * extra.images if extra else 0))
    lines = [
        f"model        {sum(p.numel() for p in stage.model.parameters()):,} parameters, "
        f"{sum(p.numel() for p in optimizer.parameters):,} trained",
        f"batch        {run.batch_size} images over {engine.world} ranks x "
        f"{run.accumulation} parts",
        f"steps        {run.steps:,}, {round(samples):,} samples",
        f"memory       {_peak_memory():.1f} GiB a rank",
        f"time         {seconds:.2f} s a step, about {_clock(seconds * run.steps)} in all",
        f"losses       {_shown(kinds[-1])}",
    ]
    if extra is not None:
        lines.append(
            f"{extra.name:12} {extra.images} images in an update of their own before "
            f"{extra.probability:.0%} of the steps; {_shown(kinds[0])}"
        )
    return "\n".join(lines)


def _kinds(stage: Stage, run: RunConfig, start: int, stop: int) -> list[UpdateKind]:
    """What the steps `start` .. `stop` - 1 are made of, in their order within a step."""
    parts = stage.batches(start * run.accumulation, stop * run.accumulation)
    main = UpdateKind(iter(parts), run.batch_size)
    extra = stage.extra
    if extra is None:
        return [main]
    first, last = (extra.count(run.seed, step) * run.accumulation for step in (start, stop))
    parts = extra.batches(first, last)
    due = partial(extra.due, run.seed)
    return [UpdateKind(iter(parts), extra.images, name=extra.name, due=due), main]


def _shown(kind: UpdateKind) -> str:
    return ", ".join(f"{name} {float(value.detach()):.3f}" for name, value in kind.losses.items())


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def validated(stage: Stage, engine: Engine) -> dict[str, float]:
    """The stage's validation figures, with the module in evaluation mode and back."""
    assert stage.validate is not None
    engine.share_buffers(stage.module)
    stage.module.eval()
    with torch.no_grad():
        figures = dict(stage.validate())
    stage.module.train()
    return figures


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _stop_if_lost(in_a_row: int, run: RunConfig, out: Path) -> None:
    if in_a_row <= run.max_skipped:
        return
    newest = checkpoint.latest(out)
    where = newest.folder if newest else "none yet"
    raise WholegrainError(
        f"the gradient was not finite for {in_a_row} updates in a row; lower optim.lr or look at "
        f"the data; the last good checkpoint is {where}"
    )


def _save(
    stage: Stage,
    optimizer: Optimizer,
    averages: Averages,
    engine: Engine,
    out: Path,
    step: int,
    keep: int,
) -> None:
    # A line of metrics may be half gathered; the resumed run must write the same one.
    state = {
        "facts": stage.facts,
        "updates": optimizer.updates,
        "averages": engine.mean(averages.state()),
    }
    if engine.is_main:
        checkpoint.save(out, step, stage.model, optimizer.adamw, state, keep, stage.files)
    engine.wait()


def _resume(stage: Stage, optimizer: Optimizer, averages: Averages, out: Path) -> int:
    found = checkpoint.latest(out)
    if found is None:
        return 0
    state = found.state()
    before = state.get("facts", {})
    for name, value in stage.facts.items():
        if before.get(name) != value:
            raise CheckpointError(
                f"{found.folder}: was made with {name} {before.get(name)!r}, this run has "
                f"{value!r}; give another --out, or the old value"
            )
    found.load(stage.model, optimizer.adamw)
    optimizer.updates = int(state.get("updates", found.step))
    averages.load(state.get("averages", {}))
    return found.step
