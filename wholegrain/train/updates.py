"""One optimizer update, whole in itself; and updates of another kind that precede some steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wholegrain.train.config import RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.meters import Averages, Throughput, Work
from wholegrain.train.optim import Optimizer
from wholegrain.train.outliers import OutlierSteps


class Batches(Protocol):
    """A stream of a rank's batches from a given part on."""

    def __call__(self, start: int, stop: int) -> Iterable[Any]: ...


@dataclass(frozen=True)
class ExtraUpdates:
    """Updates on batches of their own that come before the main update of some steps.

    Whether a step has one is a coin that falls by (seed, name, step) alone, the same on all ranks.
    The k-th of them takes the k-th global batch of its own stream, where k counts the steps before
    that had one. So a resume is still one integer: nothing is skipped, nothing seen twice.
    """

    name: str
    """Stands before the names of their figures: ``region/loss``."""
    batches: Batches
    """``batches(a, b)`` gives this rank's parts a .. b - 1 of their global batches."""
    images: int
    """Of their global batch."""
    probability: float
    """Of a step to have one."""

    def due(self, seed: int, step: int) -> bool:
        """Whether a step has one."""
        digest = hashlib.blake2b(f"{seed}/{self.name}/{step}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "little") < self.probability * 2**56

    def count(self, seed: int, stop: int) -> int:
        """How many of the steps 0 .. stop - 1 have one; a microsecond each."""
        return sum(self.due(seed, step) for step in range(stop))


@dataclass
class UpdateKind:
    """The updates of one kind that a run takes."""

    parts: Iterator[Any]
    """This rank's parts of their global batches, `run.accumulation` for each update."""
    images: int
    """Of a global batch."""
    name: str = ""
    """Stands before the names of their figures; the main updates have none."""
    due: Callable[[int], bool] = lambda step: True
    """Which steps have one."""
    lost_in_a_row: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Updates skipped since the last one that was not, on the device."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Of the last part."""

    def named(self, figures: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The figures under names of this kind's own."""
        if not self.name:
            return figures
        return {f"{self.name}/{name}": value for name, value in figures.items()}


def update_kinds(
    batches: Batches, extra: ExtraUpdates | None, run: RunConfig, start: int, stop: int
) -> list[UpdateKind]:
    """What the steps `start` .. `stop` - 1 are made of, in their order within a step."""
    parts = batches(start * run.accumulation, stop * run.accumulation)
    main = UpdateKind(iter(parts), run.batch_size)
    if extra is None:
        return [main]
    first, last = (extra.count(run.seed, step) * run.accumulation for step in (start, stop))
    parts = extra.batches(first, last)
    due = partial(extra.due, run.seed)
    return [UpdateKind(iter(parts), extra.images, name=extra.name, due=due), main]


@dataclass
class Trainer:
    """What every update needs, and what it leaves to report."""

    wrapped: nn.Module
    run: RunConfig
    engine: Engine
    optimizer: Optimizer
    averages: Averages = field(default_factory=Averages)
    speed: Throughput = field(default_factory=Throughput)
    work: Callable[[Any], Work] | None = None
    """What a batch asks of this rank, counted on the host."""
    outliers: OutlierSteps = field(default_factory=OutlierSteps)

    def update(self, kind: UpdateKind, step: int) -> None:
        """One complete update: forward, backward, clip, optimizer, clear."""
        run, engine = self.run, self.engine
        seed_update(run.seed, step, engine.rank, kind.name)
        self.optimizer.begin_step(step)
        for part in range(run.accumulation):
            batch = self._next(kind)
            with engine.part(self.wrapped, last=part == run.accumulation - 1):
                kind.losses = self.wrapped(batch.to(engine.device))
                loss = self.optimizer.scaled(kind.losses["loss"] / run.accumulation)
            engine.backward(loss)
            self.averages.add(kind.named(kind.losses))
        norm, skipped, outlier, lost = self.optimizer.step(kind.name)
        figures = {"gradient_norm": norm, "skipped": skipped, "outliers": outlier}
        self.averages.add(kind.named(figures))
        self.outliers.add(step + 1, norm, outlier)
        # An update that only the loss scale cost neither counts nor ends a row.
        kind.lost_in_a_row = (kind.lost_in_a_row.to(lost.device) + lost) * skipped

    def _next(self, kind: UpdateKind) -> Any:
        self.speed.waiting()
        batch = next(kind.parts)
        self.speed.arrived()
        if self.work is not None:
            self.speed.add(self.work(batch))
        else:
            share = kind.images // (self.run.accumulation * self.engine.world)
            self.speed.add(Work(samples=share))
        return batch


def seed_update(seed: int, step: int, rank: int, name: str = "") -> None:
    """Makes an update's randomness (dropout, negatives) a function of seed, step, rank and kind."""
    key = f"{seed}/{step}/{rank}" + (f"/{name}" if name else "")
    digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "little")
    # `torch.manual_seed` also notes, with its caller's whole stack, what to seed once other kinds
    # of device come to life; that takes as long as a small model's update.
    torch.default_generator.manual_seed(digest)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(digest)
