"""A stage so small that whole runs take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Stage, fit
from wholegrain.train.open_run import open_run
from wholegrain.train.run_folder import CONFIG

FEATURES = 4


@dataclass
class Points:
    """A batch of a linear regression."""

    inputs: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Points:
        return Points(self.inputs.to(device))


class Regression(nn.Module):
    """A norm with statistics, a dropout, a line: what a resume has to get right, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.dropout = nn.Dropout(0.3)
        self.line = nn.Linear(FEATURES, 1)

    def forward(self, batch: Points) -> dict[str, Tensor]:
        predicted = self.line(self.dropout(self.norm(batch.inputs)))
        return {"loss": (predicted.squeeze(1) - batch.inputs.sum(dim=1)).square().mean()}


@dataclass
class ToyRun:
    """A run of the toy stage in a folder, with hooks for what is to go wrong."""

    out: Path
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=9, batch_size=8, log_every=1))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.05, warmup=2))
    facts: dict[str, object] = field(default_factory=dict)
    at_part: Callable[[int], None] = lambda part: None
    """Called before each part of a batch is handed out."""
    spoil: Callable[[int, Tensor], Tensor] = lambda part, inputs: inputs
    """What becomes of a part's inputs."""
    validate: Callable[[nn.Module], dict[str, float]] | None = None

    def stage(self) -> Stage:
        torch.manual_seed(0)
        model = Regression()

        def batches(start: int, stop: int) -> Iterator[Points]:
            for part in range(start, stop):
                self.at_part(part)
                size = self.run.batch_size // self.run.accumulation
                generator = torch.Generator().manual_seed(part)
                inputs = torch.randn(size, FEATURES, generator=generator)
                yield Points(self.spoil(part, inputs))

        measure = self.validate
        return Stage(
            name="toy",
            module=model,
            model=model,
            batches=batches,
            validate=(lambda: measure(model)) if measure else None,
            facts=self.facts,
            files={"config.json": "{}"},
        )

    def fit(self) -> tuple[int, nn.Module]:
        """Trains; returns the step it began at and the model."""
        stage, engine = self.stage(), Engine(self.run)
        (self.out / CONFIG).touch()
        with open_run(self.out, self.run, engine) as folder:
            return fit(stage, self.run, self.optim, engine, folder), stage.model


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., ToyRun]:
    """Makes a toy run in a folder of the given name."""

    def make(name: str = "run", **settings: object) -> ToyRun:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return ToyRun(folder, **settings)

    return make
