"""A few-shot run: every pair of data set and seed, and the tables of all of them.

Runs of several processes share the work out: process r takes the trainings r, r + world, ... They
exchange nothing but the files of finished cells; whoever finds all of them there writes the tables.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.shots.cells import Cells, digest, write_json, write_text
from finetune.shots.config import FewShotConfig
from finetune.shots.hosts import Encoders, open_host
from finetune.shots.layouts import LAYOUTS, Layout
from finetune.shots.learn import Lesson, Score, accuracy, epoch_plan, learn
from finetune.shots.results import Table, render
from finetune.shots.sets import Item, LabelledSet, open_set, own_layout
from finetune.shots.split import (
    Part,
    PartName,
    draw_shots,
    listed_shots,
    part_of,
    prompts_of,
)
from wholegrain.config import to_dict
from wholegrain.errors import CheckpointError, ConfigError, DataError
from wholegrain.train.command import Command
from wholegrain.train.launch import Place, find_place
from wholegrain.train.run_folder import CONFIG, prepare_run_folder, refuse_foreign

RESULTS, TABLE = "results.json", "table.txt"
ZERO_SHOT, ADAPTED = "zero_shot", "mma"
_FORMAT = 1
_WAIT_S = 120.0


@dataclass(frozen=True)
class Training:
    """One training, or none (`seed` is None), and what is measured after it."""

    source: str
    part: PartName
    """Of the source's classes, which is learnt from."""
    seed: int | None
    measured: tuple[tuple[str, PartName], ...]

    @property
    def name(self) -> str:
        """Of its files."""
        return self.source if self.seed is None else f"{self.source}-seed{self.seed}"


def trainings_of(config: FewShotConfig) -> list[Training]:
    """All trainings of a run, those without learning first."""
    seeds = [*([None] if config.zero_shot else []), *config.seeds]
    if config.protocol == "base_to_novel":
        return [
            Training(name, "base", seed, ((name, "base"), (name, "novel")))
            for seed in seeds
            for name in config.targets
        ]
    measured: tuple[tuple[str, PartName], ...] = tuple((name, "all") for name in config.names)
    return [Training(config.source, "all", seed, measured) for seed in seeds]


class FewShotRun:
    """The data sets and the host of a run, ready for its trainings.

    Args:
        config: of the run.
        device: where to run.

    Raises:
        ConfigError, DataError, ReleaseError: something that is needed is not there.
    """

    def __init__(self, config: FewShotConfig, device: torch.device) -> None:
        self.config = config
        own = {
            name: own_layout(name, each.folder, each.images, each.split)
            for name, each in config.data.own.items()
        }
        self._layouts: dict[str, Layout] = {**LAYOUTS, **own}
        root = Path(config.data.root)
        self.sets: dict[str, LabelledSet] = {n: open_set(n, root, own) for n in config.names}
        self.trainings = trainings_of(config)
        needed = {each for t in self.trainings for each in (*t.measured, (t.source, t.part))}
        self._parts = {(n, part): part_of(self.sets[n], part) for n, part in sorted(needed)}
        # All are read now, so that a missing list ends the run before the first training.
        self._shots = {t.name: self._read_shots(t) for t in self.trainings}
        self.host = open_host(config.host, config.precision, device)
        self._cells = Cells(Path(config.out) / "cells")
        # So does a text that is too long.
        self._texts = {each: self._text_digest(part) for each, part in self._parts.items()}

    # --- what depends on what -------------------------------------------------------------------

    def _read_shots(self, training: Training) -> tuple[Item, ...]:
        """What is learnt from, with the labels of the part; nothing without a seed."""
        if training.seed is None:
            return ()
        config, labelled = self.config, self.sets[training.source]
        if config.data.listed_shots:
            layout = self._layouts[training.source]
            items = listed_shots(labelled, layout, config.shots, training.seed)
        else:
            items = draw_shots(labelled, config.shots, training.seed)
        chosen = self._part(training.source, training.part).pick(items)
        if not chosen:
            raise DataError(f"{labelled.folder}: {labelled.title} has no training image")
        return chosen

    def _part(self, name: str, part: PartName) -> Part:
        return self._parts[name, part]

    def _prompts(self, part: Part) -> list[str]:
        return prompts_of(part.classes, self.config.template)

    def _text_digest(self, part: Part) -> str:
        ids, mask = self.host.tokens(self._prompts(part))
        return digest({"ids": ids.tolist(), "mask": mask.tolist()})

    def _training_key(self, training: Training) -> str:
        """Digest of all that the trained weights depend on."""
        config = self.config
        values: dict[str, Any] = {
            "format": _FORMAT,
            "host": self.host.fingerprint,
            "precision": config.precision,
        }
        if training.seed is not None:
            values |= {
                "adapter": to_dict(config.adapter),
                "optim": to_dict(config.optim),
                "batch_size": config.batch_size(training.source),
                "seed": training.seed,
                "source": training.source,
                "texts": self._texts[training.source, training.part],
                "shots": self._shots[training.name],
            }
        return digest(values)

    def _cell(self, training: Training, name: str, part: PartName) -> tuple[str, str]:
        """Name and key of the cell that holds a figure."""
        key = digest(
            {
                "training": self._training_key(training),
                "set": self.sets[name].fingerprint,
                "part": part,
                "texts": self._texts[name, part],
            }
        )
        return f"{training.name}-on-{name}-{part}", key

    # --- what is done ---------------------------------------------------------------------------

    def missing(self, training: Training) -> list[tuple[str, PartName]]:
        """What of a training is still to be measured."""
        return [
            (name, part)
            for name, part in training.measured
            if self._cells.read(*self._cell(training, name, part)) is None
        ]

    def do(self, training: Training) -> None:
        """Trains, unless the adapters are there, and measures what is missing."""
        missing = self.missing(training)
        if not missing:
            return
        encoders = self.host if training.seed is None else self._trained(training)
        config = self.config
        for name, part_name in missing:
            part, labelled = self._part(name, part_name), self.sets[name]
            score = accuracy(
                encoders,
                labelled.folder,
                part.test,
                self._prompts(part),
                config.eval_batch_size,
                config.data.workers,
            )
            cell, key = self._cell(training, name, part_name)
            values = {"correct": score.correct, "count": score.count, "classes": len(part.classes)}
            self._cells.write(cell, key, values)
            print(
                f"{training.name}: {labelled.title} {part_name} {score.percent:.2f} %", flush=True
            )

    def _trained(self, training: Training) -> Encoders:
        assert training.seed is not None
        key = self._training_key(training)
        path = self._cells.path(training.name, key, ".safetensors")
        encoders = self.host.adapted(self.config.adapter, training.seed)
        if path.exists():
            try:
                encoders.load(path)
                return encoders
            except CheckpointError:
                # Its name is a digest of all that it depends on: what does not fit is damaged. The
                # adapters are still the fresh ones, as `load` fills all of them or none.
                print(
                    f"{path}: is damaged; these adapters are trained again, and it is overwritten",
                    file=sys.stderr,
                    flush=True,
                )
        began = time.monotonic()
        losses = learn(encoders, self.lesson(training), self.config.optim, training.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        encoders.save(path)
        seconds = time.monotonic() - began
        self._cells.write(training.name, key, {"losses": losses, "seconds": seconds})
        print(f"{training.name}: loss {losses[-1]:.4f} after {seconds:.0f} s", flush=True)
        return encoders

    def lesson(self, training: Training) -> Lesson:
        """What a training learns from."""
        labelled = self.sets[training.source]
        return Lesson(
            name=training.source,
            folder=labelled.folder,
            items=self._shots[training.name],
            prompts=self._prompts(self._part(training.source, training.part)),
            batch_size=self.config.batch_size(training.source),
            workers=self.config.data.workers,
        )

    def tables(self) -> dict[str, Table] | None:
        """The tables of all methods; None while a cell is missing."""
        scores: dict[str, dict[str, dict[str, list[Score]]]] = {}
        for training in self.trainings:
            method = ZERO_SHOT if training.seed is None else ADAPTED
            for name, part in training.measured:
                cell = self._cells.read(*self._cell(training, name, part))
                if cell is None:
                    return None
                score = Score(int(cell["correct"]), int(cell["count"]))
                of_set = scores.setdefault(method, {}).setdefault(name, {})
                of_set.setdefault(part, []).append(score)
        source = None if self.config.protocol == "base_to_novel" else self.config.source
        return {method: Table.of(each, source) for method, each in scores.items()}

    def plan(self) -> str:
        """What is to be done, for people to read."""
        lines = []
        for training in self.trainings:
            missing, count = self.missing(training), len(training.measured)
            line = f"{training.name:<28}"
            if training.seed is None:
                line += "no training"
            else:
                lesson = self.lesson(training)
                steps = len(epoch_plan(len(lesson.items), lesson.batch_size, ()))
                line += f"{len(lesson.items):,} images, {self.config.optim.epochs} x {steps} steps"
            images = sum(len(self._part(*each).test) for each in missing)
            line += f"; {len(missing)} of {count} measurements missing, {images:,} test images"
            lines.append(line)
        return "\n".join(lines)


def few_shot(command: Command[FewShotConfig]) -> int:
    """Trains and measures what of the run is not there yet, and writes its tables."""
    config, out = command.config, Path(command.config.out)
    place = find_place(os.environ)
    device = _device(config, place)
    refuse_foreign(out)
    run = FewShotRun(config, device)
    if command.dry_run:
        if place.rank == 0:
            print(run.plan())
            print(_rehearse(run, run.trainings[-1]))
        return 0
    _open_folder(out, config, place)
    for training in run.trainings[place.rank :: place.world]:
        run.do(training)
    tables = run.tables()
    if tables is not None:
        _publish(command, run, tables, out)
    return 0


def _rehearse(run: FewShotRun, training: Training) -> str:
    """Takes one step of a training, of which nothing is kept; says how long it was."""
    assert training.seed is not None
    lesson = run.lesson(training)
    few = replace(lesson, items=lesson.items[: lesson.batch_size])
    encoders = run.host.adapted(run.config.adapter, training.seed)
    parameters = sum(each.numel() for each in encoders.adapters.parameters())
    began = time.monotonic()
    losses = learn(encoders, few, replace(run.config.optim, epochs=1), training.seed)
    return (
        f"{parameters:,} parameters learn; a step of {training.name}: loss {losses[0]:.4f}, "
        f"{time.monotonic() - began:.2f} s"
    )


def _device(config: FewShotConfig, place: Place) -> torch.device:
    named = config.device or (f"cuda:{place.local_rank}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(named)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's answers to an absent device
        raise ConfigError(f"device is {named!r}, which cannot be used ({error}); try cpu") from None
    return device


def _open_folder(out: Path, config: FewShotConfig, place: Place) -> None:
    """Makes the folder, by the first rank; the others wait for it."""
    if place.rank == 0:
        prepare_run_folder(out, config, place.world)
        return
    until = time.monotonic() + _WAIT_S
    while not (out / CONFIG).exists():
        if time.monotonic() > until:
            raise ConfigError(
                f"out is {str(out)!r}, where rank 0 has written no {CONFIG} for {_WAIT_S:.0f} s; "
                "it must be a folder that all ranks see"
            )
        time.sleep(0.1)


def _publish(
    command: Command[FewShotConfig], run: FewShotRun, tables: dict[str, Table], out: Path
) -> None:
    config = command.config
    write_json(
        out / RESULTS,
        {
            "protocol": config.protocol,
            "command": command.line,
            "host": {**to_dict(config)["host"], "sha256": run.host.fingerprint},
            "shots": config.shots,
            "seeds": list(config.seeds),
            "sets": {
                name: {"classes": len(each.classes), "fingerprint": each.fingerprint}
                for name, each in run.sets.items()
            },
            "tables": {method: table.to_dict() for method, table in tables.items()},
        },
    )
    text = render(tables, {name: each.title for name, each in run.sets.items()})
    write_text(out / TABLE, text)
    print(text)
