"""One process of `test_engine`, started by torchrun: OUT."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.divergence import RankDivergence
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Stage, fit
from wholegrain.train.open_run import open_run

STEPS, BATCH, FEATURES = 5, 8, 3


class Line(nn.Module):
    """A regression, which without a norm learns the same on any number of ranks."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES) if norm else nn.Identity()
        self.line = nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        wanted = inputs.sum(dim=1)
        return {"loss": (self.line(self.norm(inputs)).squeeze(1) - wanted).square().mean()}


def train(
    out: Path, accumulation: int, norm: bool = False, deepspeed: str | None = None
) -> dict[str, Any]:
    """Trains the line on this rank's slices of fixed global batches; what it ended with."""
    run = RunConfig(
        steps=STEPS,
        batch_size=BATCH,
        accumulation=accumulation,
        log_every=2,
        validate_every=2,
        save_every=3,
        deepspeed=deepspeed,
    )
    engine = Engine(run)
    torch.manual_seed(0)
    model = Line(norm)
    share = BATCH // accumulation // engine.world

    def batches(start: int, stop: int) -> Iterator[Tensor]:
        for part in range(start, stop):
            step, place = divmod(part, accumulation)
            whole = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(step))
            mine = place * engine.world + engine.rank
            yield whole[mine * share : (mine + 1) * share]

    means: list[float] = []

    def validate() -> dict[str, float]:
        means.extend(model.norm.running_mean.tolist() if norm else [])
        return {"weight": float(model.line.weight.sum())}

    stage = Stage(name="line", module=model, model=model, batches=batches, validate=validate)
    out.mkdir(parents=True, exist_ok=True)
    with open_run(out, run, engine) as folder:
        fit(stage, run, OptimConfig(lr=0.1, warmup=0), engine, folder)
    buffers = [value.tolist() for value in model.buffers()]
    return {"weight": model.line.weight.tolist(), "validated": means, "buffers": buffers}


def diverged(out: Path, **settings: int) -> list[str]:
    """A bit of rank 1's weights flips before step 4; what is said, and which checkpoints are left.

    Args:
        settings: when checkpoints and comparisons are due.
    """
    run = RunConfig(steps=STEPS, batch_size=BATCH, **settings)
    engine = Engine(run)
    torch.manual_seed(0)
    model = Line(norm=False)

    def batches(start: int, stop: int) -> Iterator[Tensor]:
        for part in range(start, stop):
            if part == 3 and engine.rank == 1:
                model.line.weight.data.view(torch.int32)[0, 0] ^= 1
            yield torch.ones(BATCH // engine.world, FEATURES)

    stage = Stage(name="line", module=model, model=model, batches=batches)
    said = []
    try:
        with open_run(out, run, engine) as folder:
            fit(stage, run, OptimConfig(lr=0.1, warmup=0), engine, folder)
    except RankDivergence as error:
        said = [str(error.exit_status), str(error)]
    engine.wait()
    return [*said, *sorted(path.name for path in (out / "checkpoints").iterdir())]


def main(out: Path) -> None:
    """Runs the cases and writes what this rank saw."""
    found: dict[str, Any] = {"plain": train(out / "plain", 1), "parts": train(out / "parts", 2)}
    found["norm"] = train(out / "norm", 1, norm=True)
    for stage in (1, 3):
        file = Path(__file__).parents[3] / f"configs/deepspeed/zero{stage}.json"
        found[f"zero{stage}"] = train(out / f"zero{stage}", 2, deepspeed=str(file))
    found["diverged"] = diverged(out / "diverged", save_every=2)
    found["compared"] = diverged(out / "compared", compare_ranks_every=2)
    found["never compared"] = diverged(out / "never", save_every=2, compare_ranks_every=0)
    engine = Engine(RunConfig(batch_size=BATCH))
    found["any"] = [engine.any(engine.rank == 1), engine.any(False)]
    found["mean"] = engine.mean({"a": float(engine.rank), "b": 3.0})
    found["rank"], found["world"], found["main"] = engine.rank, engine.world, engine.is_main
    found["local"] = engine.local_rank
    found["errors"] = []
    for batch in (7, 1):
        try:
            Engine(RunConfig(batch_size=batch))
        except ConfigError as error:
            found["errors"].append(str(error))
    engine.wait()
    (out / f"rank-{engine.rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
