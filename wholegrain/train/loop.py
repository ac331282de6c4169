"""The loop. Everything optional stands beside it."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wholegrain.errors import CheckpointError, WholegrainError
from wholegrain.train import checkpoint
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.meters import Averages, Journal, Throughput
from wholegrain.train.optim import Optimizer
from wholegrain.train.preempt import StopRequest

_TIMED = 3  # steps of a dry run; the first warms up and is not counted


class Batches(Protocol):
    """A stream of a rank's batches from a given part on."""

    def __call__(self, start: int, stop: int) -> Iterable[Any]: ...


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
        WholegrainError: too many non-finite steps in a row.
    """
    optimizer = Optimizer(stage.module, optim, run.steps, stage.adapters)
    # A model that comes from a release is in evaluation mode.
    stage.module.train().to(engine.device)
    averages, speed = Averages(), Throughput()
    start = _resume(stage, optimizer, averages, out)
    wrapped = engine.wrap(stage.module)
    with (
        Journal(out, run.steps, start, stage.name, engine.is_main) as journal,
        StopRequest() as stop,
    ):
        parts = iter(stage.batches(start * run.accumulation, run.steps * run.accumulation))
        for step in range(start, run.steps):
            seed_step(run.seed, step, engine.rank)
            rate = optimizer.begin_step(step)
            for part in range(run.accumulation):
                batch = _next(parts, speed)
                with engine.part(wrapped, last=part == run.accumulation - 1):
                    losses = wrapped(batch.to(engine.device))
                    loss = losses["loss"] / run.accumulation
                engine.backward(loss)
                averages.add(losses)
            norm, skipped = optimizer.step()
            speed.step(run.batch_size)
            averages.add({"gradient_norm": norm.nan_to_num(0.0, 0.0, 0.0), "skipped": skipped})
            done = step + 1
            if done % run.log_every == 0 or done == run.steps:
                means = engine.mean({**averages.take(), **speed.take()})
                journal.write(done, "train", {**means, "learning_rate": rate})
                _stop_if_lost(int(optimizer.lost_in_a_row), run, out)
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
    wrapped = engine.wrap(stage.module.train().to(engine.device))
    parts = iter(stage.batches(0, _TIMED * run.accumulation))
    times: list[float] = []
    losses: dict[str, Tensor] = {}
    for step in range(_TIMED):
        seed_step(run.seed, step, engine.rank)
        start = time.perf_counter()
        for part in range(run.accumulation):
            with engine.part(wrapped, last=part == run.accumulation - 1):
                losses = wrapped(next(parts).to(engine.device))
            engine.backward(losses["loss"] / run.accumulation)
        optimizer.step()
        times.append(time.perf_counter() - start)
    seconds = min(times[1:])
    lines = [
        f"model        {sum(p.numel() for p in stage.model.parameters()):,} parameters, "
        f"{sum(p.numel() for p in optimizer.parameters):,} trained",
        f"batch        {run.batch_size} images over {engine.world} ranks x "
        f"{run.accumulation} parts",
        f"steps        {run.steps:,}, {run.steps * run.batch_size:,} samples",
        f"memory       {_peak_memory():.1f} GiB a rank",
        f"time         {seconds:.2f} s a step, about {_clock(seconds * run.steps)} in all",
        "losses       "
        + ", ".join(f"{name} {float(v.detach()):.3f}" for name, v in losses.items()),
    ]
    return "\n".join(lines)


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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes the randomness of a step (dropout, negatives) a function of seed, step and rank."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _next(parts: Iterator[Any], speed: Throughput) -> Any:
    speed.waiting()
    batch = next(parts)
    speed.arrived()
    return batch


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _stop_if_lost(in_a_row: int, run: RunConfig, out: Path) -> None:
    if in_a_row <= run.max_skipped:
        return
    newest = checkpoint.latest(out)
    where = newest.folder if newest else "none yet"
    raise WholegrainError(
        f"the gradient was not finite for {in_a_row} steps in a row; lower optim.lr or look at the "
        f"data; the last good checkpoint is {where}"
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
    state = {"facts": stage.facts, "averages": engine.mean(averages.state())}
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
    averages.load(state.get("averages", {}))
    return found.step
