"""One process of the engines' tests, started by torchrun or alone: CASES.json OUT.

Trains each case in turn and writes what this rank saw to ``OUT/rank-R.pt``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wholegrain.train.checkpoint import Checkpoint, complete
from wholegrain.train.checkpoint_writer import Writer
from wholegrain.train.config import OptimConfig, OutlierConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.optim import Optimizer, OwnGroup, Update

IMAGES = 8
# A large epsilon: AdamW would blow the rounding of gradients that are zero up to whole steps.
OPTIM = OptimConfig(lr=3e-3, warmup=2, eps=1e-3)
TEMPERATURE = {"model.temperature": (0.1999, 0.2001)}
Found = dict[str, Any]


@dataclass
class Case:
    """One training."""

    name: str
    model: str = "line"
    deepspeed: str | None = None
    precision: str = "fp32"
    accumulation: int = 1
    steps: int = 6
    schedule: int = 20
    """Steps that the rate is laid out for."""
    spoilt_step: int | None = None
    """Step at which each rank's loss is multiplied by a number of `spoilt_by`."""
    spoilt_by: tuple[float, ...] = ()
    skip_outliers: bool = False
    passed_by: tuple[int, ...] = ()
    """Steps whose forward pass leaves part of the model out."""
    resume: str | None = None
    """Run folder to go on from."""
    save: str | None = None
    """Run folder to save to at the end."""

    def run(self) -> RunConfig:
        return RunConfig(
            steps=self.schedule,
            batch_size=IMAGES,
            accumulation=self.accumulation,
            precision=self.precision,
            deepspeed=self.deepspeed,
            patience_s=60.0,
            outliers=OutlierConfig(window=8, skip=self.skip_outliers),
        )


class Line(nn.Module):
    """A regression with what engines tell apart: a norm, a scalar, a part that updates pass by."""

    limits: ClassVar[dict[str, tuple[float, float]]] = {"scale": (0.9, 1.1)}

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, affine=False)
        self.hidden = nn.Linear(5, 7)
        self.line = nn.Linear(7, 1)
        self.extra = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def own(self) -> list[OwnGroup]:
        """The scale alone has a rate and a clipping of its own, which its gradients exceed."""
        return [OwnGroup("scale", [self.scale], lr=6e-3, clip_norm=0.01)]

    def forward(self, part: tuple[Tensor, bool]) -> dict[str, Tensor]:
        inputs, whole = part
        self.norm(inputs)  # for its statistics alone: what ranks see of a batch differs
        predicted = self.line(self.hidden(inputs).tanh()).squeeze(1) * self.scale
        if whole:
            predicted = predicted + self.extra(inputs).square().sum(dim=1)
        # Beyond its limits the scale would fit better.
        return {"loss": (predicted - 9 * inputs.sum(dim=1)).float().square().mean()}


def line_parts(case: Case, engine: Engine) -> Callable[[int, int], Any]:
    share = IMAGES // case.accumulation // engine.world

    def at(step: int, part: int) -> Any:
        whole = torch.randn(IMAGES, 5, generator=torch.Generator().manual_seed(step))
        mine = part * engine.world + engine.rank
        inputs = whole[mine * share : (mine + 1) * share].to(engine.device)
        return inputs, step not in case.passed_by

    return at


def build(case: Case, engine: Engine) -> tuple[nn.Module, Callable[[int, int], Any]]:
    """The module, and its input of a part of a step."""
    torch.manual_seed(0)
    if case.model == "line":
        return Line(), line_parts(case, engine)
    from tests.wholegrain.train.ruled_pretraining import pretraining

    return pretraining(case.model, case.accumulation, engine.world, engine.rank)


def train(case: Case) -> Found:
    """Trains; the losses of all ranks' parts, updates, and the weights at the end."""
    run = case.run()
    engine = Engine(run)
    module, inputs = build(case, engine)
    limits = Line.limits if case.model == "line" else TEMPERATURE
    start, before = _load(case, module)
    own = module.own() if isinstance(module, Line) else []
    optimizer = Optimizer(module, OPTIM, run.steps, own=own, run=run, limits=limits)
    wrapped = engine.wrap(module, optimizer, some_unused=bool(case.passed_by))
    if before is not None:
        optimizer.load(before.optimizer())
        optimizer.load_state(before.state()["optimizer"])
    found: Found = {"loaded": _held(engine, module, optimizer)}
    losses, updates = [], []
    for step in range(start, start + case.steps):
        optimizer.begin_step(step)
        if step == case.spoilt_step:
            found["before"] = _held(engine, module, optimizer)
        for part in range(case.accumulation):
            with engine.part(wrapped, last=part == case.accumulation - 1):
                loss = wrapped(inputs(step, part))["loss"] / case.accumulation
            losses.append(float(loss.detach()))
            if step == case.spoilt_step:
                loss = loss * case.spoilt_by[engine.rank]
            engine.backward(optimizer.scaled(loss))
        updates.append(Update(*map(float, optimizer.step())))  # type: ignore[arg-type]
        if step == case.spoilt_step:
            found["after"] = _held(engine, module, optimizer)
    if case.save is not None:
        _save(case, engine, module, optimizer, start + case.steps)
    found |= {"losses": losses, "updates": [list(update) for update in updates]}
    found |= {"state": optimizer.state(), "end": _held(engine, module, optimizer)}
    with engine.whole(module), torch.no_grad():
        # Validation calls submodules and methods, not the wrapped forward.
        found["whole"] = {n: p.detach().clone() for n, p in module.named_parameters()}
        found["validated"] = float(module(inputs(0, 0))["loss"])
    engine.unwrap(module)
    found["unwrapped"] = {name: p.detach().clone() for name, p in module.named_parameters()}
    return found


def _held(engine: Engine, module: nn.Module, optimizer: Optimizer) -> Found:
    weights = engine.whole_weights(module)
    moments = {
        (f.name, f.start): (f.step, {n: t.clone() for n, t in f.tensors.items()})
        for f in optimizer.fragments()
    }
    copied = None if weights is None else {name: value.clone() for name, value in weights.items()}
    # What DeepSpeed updates, which is not always the tensor that the module computes with.
    masters = {
        (piece.name, piece.start): piece.of(flat).detach().clone()
        for flat, pieces in optimizer.adamw.pieces.items()
        for piece in pieces
    }
    return {"weights": copied, "moments": moments, "masters": masters}


def _load(case: Case, module: nn.Module) -> tuple[int, Checkpoint | None]:
    if case.resume is None:
        return 0, None
    found = complete(Path(case.resume))[-1]
    found.load(module)
    return found.step, found


def _save(case: Case, engine: Engine, module: nn.Module, optimizer: Optimizer, step: int) -> None:
    assert case.save is not None
    said: list[str] = []
    folder = Path(case.save)
    writer = Writer(
        folder,
        rank=engine.rank,
        world=engine.world,
        keep=1,
        keep_every=0,
        background=False,
        say=said.append,
        patience_s=30.0,
    )
    engine.wait()
    state = {"optimizer": optimizer.state()} if engine.is_main else None
    weights = engine.whole_weights(module)
    writer.save(step, weights, optimizer.fragments(), state, {})
    writer.wait()
    engine.wait()
    assert not said


def main(cases: Path, out: Path) -> None:
    """Trains every case and writes what this rank saw."""
    torch.set_num_threads(1)
    found = {given["name"]: train(Case(**given)) for given in json.loads(cases.read_text())}
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(found, out / f"rank-{rank}.pt")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
