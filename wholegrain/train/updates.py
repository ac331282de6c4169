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


class LostUpdates:
    """Updates in a row that were not finite, counted on the device for each kind of update."""

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._longest: dict[str, Tensor] = {}

    def add(self, kind: str, skipped: Tensor, lost: Tensor) -> None:
        """Takes note of an update.

        Args:
            kind: its name.
            skipped: () fp32, 1 where the update was left out as not finite, else 0.
            lost: () the same, but 0 where the scale of the loss was the cause: such an update
                neither counts nor ends a row.
        """
        before = self._rows.get(kind)
        row = lost * skipped if before is None else (before.to(lost.device) + lost) * skipped
        longest = self._longest.get(kind)
        self._rows[kind] = row
        # A row that has ended by the time that somebody looks has been there all the same.
        self._longest[kind] = row if longest is None else torch.maximum(longest, row)

    def longest(self) -> int:
        """Updates of the longest row so far that this start has seen; the host waits here."""
        return max((int(row) for row in self._longest.values()), default=0)

    def state(self) -> dict[str, int]:
        """The rows that have not ended, for a checkpoint; the host waits here."""
        return {kind: int(row) for kind, row in self._rows.items()}

    def load(self, state: Mapping[str, int]) -> None:
        """Goes on counting from `state`."""
        self._rows = {kind: torch.tensor(float(row)) for kind, row in state.items()}


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
    lost: LostUpdates = field(default_factory=LostUpdates)

    def update(self, kind: UpdateKind, step: int) -> None:
        """One complete update: forward, backward, clip, optimizer, clear."""
        run, engine = self.run, self.engine
        seed_update(run.seed, step, engine.rank, kind.name)
        self.optimizer.begin_step(step)
        for part in range(run.accumulation):
            batch = self._next(kind)
            with engine.part(self.wrapped, last=part == run.accumulation - 1):
                kind.losses = self.wrapped(batch.to(engine.device, non_blocking=True))
                loss = self.optimizer.scaled(kind.losses["loss"] / run.accumulation)
            engine.backward(loss)
            self.averages.add(kind.named(kind.losses))
        norm, skipped, outlier, lost = self.optimizer.step(kind.name)
        figures = {"gradient_norm": norm, "skipped": skipped, "outliers": outlier}
        self.averages.add(kind.named(figures))
        self.outliers.add(step + 1, norm, outlier)
        self.lost.add(kind.name, skipped, lost)

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
