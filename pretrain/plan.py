"""The dry run: everything is checked and one step is taken, before hours are spent."""

from __future__ import annotations

import resource
import time

import torch

from pretrain.config import PretrainConfig
from pretrain.data import PretrainData
from pretrain.objective import PretrainingModule
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.engine import Engine
from wholegrain.train.loop import seed_step
from wholegrain.train.optim import Optimizer

_STEPS = 3  # the first one warms up, the others are timed


def dry_run(
    config: PretrainConfig, data: PretrainData, model: MultiGrainModel, engine: Engine
) -> str:
    """Takes a few steps on real batches, saves nothing, and says what the run will be."""
    run = config.run
    module = engine.wrap(
        PretrainingModule(model, config.objective, data.capacity(engine.world)).to(engine.device)
    )
    optimizer = Optimizer(module, config.optim, run.steps)
    batches = data.stream(0, _STEPS * run.accumulation, engine.rank, engine.world)
    times, losses, concepts, tokens = [], {}, 0, 0
    for step in range(_STEPS):
        seed_step(run.seed, step, engine.rank)
        start = time.perf_counter()
        for part in range(run.accumulation):
            batch = next(batches)
            concepts, tokens = batch.num_concepts, len(batch.tokens)
            with engine.part(module, last=part == run.accumulation - 1):
                losses = module(batch.to(engine.device))
            engine.backward(losses["loss"] / run.accumulation)
        optimizer.step()
        times.append(time.perf_counter() - start)
    seconds = min(times[1:])
    samples = run.steps * run.batch_size
    total = sum(len(source.corpus) for source in data.sources)
    lines = [
        "corpora      " + ", ".join(f"{s.name} ({len(s.corpus):,})" for s in data.sources),
        f"model        {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{data.tokenizer.vocab_size:,} word pieces",
        f"batch        {run.batch_size} images over {engine.world} ranks x {run.accumulation} parts; "
        f"a part holds {concepts} concepts, {tokens} tokens",
        f"steps        {run.steps:,}, {samples:,} samples, {samples / total:.1f} epochs",
        f"memory       {_memory():.1f} GiB a rank",
        f"time         {seconds:.2f} s a step, about {_clock(seconds * run.steps)} in all",
        "losses       " + ", ".join(f"{name} {float(value):.3f}" for name, value in losses.items()),
    ]
    return "\n".join(lines)


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
