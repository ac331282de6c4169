"""A dry run: a few real steps, of which nothing is kept, and the plan of the whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from wholegrain.train.deepspeed_config import read_deepspeed
from wholegrain.train.loop import make_trainer
from wholegrain.train.meters import Averages
from wholegrain.train.plan import check_world, plan_lines, plan_of
from wholegrain.train.step_memory import StepMemory
from wholegrain.train.updates import UpdateKind, update_kinds

if TYPE_CHECKING:
    from wholegrain.train.config import OptimConfig, RunConfig
    from wholegrain.train.engine import Engine
    from wholegrain.train.loop import Stage
    from wholegrain.train.plan import Gather

_TIMED = 3  # updates of each kind; the first warms up and is not counted


def timed_steps(
    stage: Stage,
    run: RunConfig,
    optim: OptimConfig,
    engine: Engine,
    planned: int | None = None,
    gather: Gather | None = None,
) -> str:
    """Takes a few real steps, keeps nothing, and says what the run will be.

    Args:
        stage: with `planned`, its batches are the first of so many ranks' parts.
        run, optim: of the run.
        engine: where the steps are taken.
        planned: ranks of the run; None are those that are here.
        gather: what the losses exchange between ranks.

    Raises:
        ConfigError: the batch does not divide over the ranks.
    """
    world = planned or engine.world
    extra = stage.extra
    shared = {"run.batch_size": run.batch_size, **stage.shared}
    check_world(shared, run.accumulation, world)
    stage.module.train().to(engine.device)
    memory = StepMemory(engine.device)
    trainer = make_trainer(stage, run, optim, engine, Averages())
    shares = [1.0] if extra is None else [extra.probability, 1.0]
    always = None if extra is None else replace(extra, probability=1.0)
    kinds = update_kinds(stage.batches, always, run, 0, _TIMED)
    seconds = sum(
        share * _seconds(kind, trainer.update, engine)
        for share, kind in zip(shares, kinds, strict=True)
    )
    growth = memory.growth()
    trained = sum(p.numel() for p in trainer.optimizer.parameters)
    engine.unwrap(stage.module)
    samples = run.steps * (run.batch_size + (extra.probability * extra.images if extra else 0))
    lines = [
        f"model        {sum(p.numel() for p in stage.model.parameters()):,} parameters, "
        f"{trained:,} trained",
        f"samples      {round(samples):,}",
        f"time         {seconds:.2f} s a step, about {_clock(seconds * run.steps)} in all"
        + ("" if planned is None else ", without exchange between ranks, on this device"),
        f"losses       {_shown(kinds[-1])}",
    ]
    if extra is not None:
        lines.append(
            f"{extra.name:12} {extra.images} images in an update of their own before "
            f"{extra.probability:.0%} of the steps; {_shown(kinds[0])}"
        )
    settings = None if run.deepspeed is None else read_deepspeed(run, world).values
    plan = plan_of(
        stage.module,
        run,
        world,
        updates=1.0 + (extra.probability if extra is not None else 0.0),
        settings=settings,
        gather=gather,
        growth=growth,
        here=engine.world,
    )
    total = _total_memory(engine)
    return "\n".join([*lines, plan_lines(plan, total)])


def _seconds(kind: UpdateKind, update: Callable[[UpdateKind, int], None], engine: Engine) -> float:
    times: list[float] = []
    for step in range(_TIMED):
        start = time.perf_counter()
        update(kind, step)
        engine.synchronise()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _total_memory(engine: Engine) -> int | None:
    """Bytes of this rank's GPU; None without one, where the plan compares with common cards."""
    if engine.device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(engine.device).total_memory)


def _shown(kind: UpdateKind) -> str:
    shown = {name: float(value.detach()) for name, value in kind.losses.items() if "/" not in name}
    return ", ".join(f"{name} {value:.3f}" for name, value in shown.items())


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
