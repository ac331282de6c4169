"""A stage with extra updates, for `test_updates`; as a program of torchrun: OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Stage, fit
from wholegrain.train.open_run import open_run
from wholegrain.train.run_folder import CONFIG
from wholegrain.train.updates import ExtraUpdates

FEATURES, BATCH, EXTRA = 3, 8, 4


@dataclass
class Rows:
    """Inputs of a regression; `boxed` ones go to the second head as well."""

    inputs: Tensor
    boxed: bool

    def to(self, device: torch.device, non_blocking: bool = False) -> Rows:
        return Rows(self.inputs.to(device), self.boxed)


class TwoHeads(nn.Module):
    """A body, and a second head that the main updates do not touch."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, FEATURES)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(FEATURES, 1)
        self.box = nn.Linear(FEATURES, 1)

    def forward(self, rows: Rows) -> dict[str, Tensor]:
        hidden = self.dropout(self.body(rows.inputs))
        wanted = rows.inputs.sum(dim=1)
        losses = {"line": (self.head(hidden).squeeze(1) - wanted).square().mean()}
        if rows.boxed:
            losses["box"] = (self.box(hidden).squeeze(1) + wanted).square().mean()
        return {**losses, "loss": torch.stack(list(losses.values())).sum()}


@dataclass
class ExtraRun:
    """A run in a folder; hooks say what is watched and what goes wrong."""

    out: Path
    run: RunConfig = field(
        default_factory=lambda: RunConfig(steps=9, batch_size=BATCH, log_every=1)
    )
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.05, warmup=2))
    probability: float | None = 0.5
    dropout: float = 0.3
    at_part: Callable[[str, int], None] = lambda kind, part: None
    """Called with kind and part before a batch is handed out."""
    spoil: Callable[[str, int, Tensor], Tensor] = lambda kind, part, inputs: inputs

    def stage(self, engine: Engine) -> Stage:
        torch.manual_seed(0)
        model = TwoHeads(self.dropout)
        extra = None
        if self.probability is not None:
            batches = self._batches("region", EXTRA, engine)
            extra = ExtraUpdates("region", batches, EXTRA, self.probability)
        main = self._batches("main", self.run.batch_size, engine)
        return Stage(name="two", module=model, model=model, batches=main, extra=extra)

    def fit(self) -> tuple[int, TwoHeads]:
        """Trains; returns the step it began at and the model."""
        self.out.mkdir(parents=True, exist_ok=True)
        engine = Engine(self.run)
        stage = self.stage(engine)
        (self.out / CONFIG).touch()
        with open_run(self.out, self.run, engine) as folder:
            start = fit(stage, self.run, self.optim, engine, folder)
        assert isinstance(stage.model, TwoHeads)
        return start, stage.model

    def _batches(
        self, kind: str, size: int, engine: Engine
    ) -> Callable[[int, int], Iterator[Rows]]:
        share = size // self.run.accumulation // engine.world

        def batches(start: int, stop: int) -> Iterator[Rows]:
            for part in range(start, stop):
                self.at_part(kind, part)
                number, place = divmod(part, self.run.accumulation)
                seed = number + 1000 * (kind == "region")
                whole = torch.randn(size, FEATURES, generator=torch.Generator().manual_seed(seed))
                mine = place * engine.world + engine.rank
                inputs = whole[mine * share : (mine + 1) * share]
                yield Rows(self.spoil(kind, part, inputs), kind == "region")

        return batches


def trained(out: Path, accumulation: int = 1) -> dict[str, Any]:
    """What a run without dropout ends with."""
    run = RunConfig(steps=9, batch_size=BATCH, accumulation=accumulation, log_every=3)
    _, model = ExtraRun(out, run=run, dropout=0.0).fit()
    return {name: value.flatten().tolist() for name, value in model.named_parameters()}


def main(out: Path) -> None:
    """Runs the cases and writes what this rank ended with."""
    found = {"plain": trained(out / "plain"), "parts": trained(out / "parts", 2)}
    rank = torch.distributed.get_rank()
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
