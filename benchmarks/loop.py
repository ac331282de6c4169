"""What the loop costs beside the bare model step, and how long a checkpoint stops it.

    OMP_NUM_THREADS=2 python -m benchmarks.loop --json benchmarks/results/loop.json

Both sides take the same batches through the same module with the same optimizer, in turn, in one
process: the bare one forward, backward and update; the other all of `fit`, with meters, journal,
guards and votes. Two runs differ by more than the loop costs on a machine that others use as well,
so on a CPU, where a call returns when its work is done, the loop's own time is also taken within
its run: that of a step without its forward, backward and update. Checkpoints are measured apart:
how long a save stops the steps, and how much slower they are while its files are written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine import PRECISIONS, Facts, facts
from benchmarks.train_step_cases import SIZES, make_batch, model_config
from pretrain.config import ObjectiveConfig
from pretrain.objective import PretrainingModule
from pretrain.work import StepWork
from wholegrain.data.batch import ConceptBatch
from wholegrain.errors import run_cli
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Stage, fit, make_trainer
from wholegrain.train.meters import Averages
from wholegrain.train.open_run import OpenRun, open_run
from wholegrain.train.optim import Optimizer
from wholegrain.train.run_folder import CONFIG

EVERY = 500
"""Steps between checkpoints that a save's share of the time is given for."""
_OPTIM = OptimConfig(lr=1e-5, warmup=0)
_WARM_UP = 2


class Clocked:
    """Batches of a run, each asked for at a time that is remembered."""

    def __init__(self, batches: Sequence[ConceptBatch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self.asked: list[float] = []
        self.inside: list[float] = []
        """Seconds in what a bare step calls as well, up to each request."""
        self._spent = 0.0

    def __call__(self, start: int, stop: int) -> Iterator[ConceptBatch]:
        """The batches `start` .. `stop` - 1, over and over the same few."""
        self.asked, self.inside, self._spent = [], [], 0.0
        for number in range(start, stop):
            if number in {start, stop - 1} and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # the ends of what is timed, nothing between
            self.asked.append(time.perf_counter())
            self.inside.append(self._spent)
            yield self._batches[number % len(self._batches)]

    def seconds_a_step(self) -> float:
        """Mean from the end of the warm-up to the last request."""
        steps = len(self.asked) - 1 - _WARM_UP
        return (self.asked[-1] - self.asked[_WARM_UP]) / steps

    def own_share(self) -> float:
        """What a step takes beside forward, backward and update, as a share of these."""
        inside = self.inside[-1] - self.inside[_WARM_UP]
        return (self.asked[-1] - self.asked[_WARM_UP]) / inside - 1

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time counted as that of a bare step."""

        def run(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self._spent += time.perf_counter() - begun

        return run


class Case:
    """A model, its batches and where they are trained."""

    def __init__(self, options: argparse.Namespace, size: str) -> None:
        self.run = RunConfig(
            batch_size=options.batch[SIZES.index(size)],
            precision=options.precision,
            deepspeed=options.deepspeed,
            # As many steps between two lines as the recipes have.
            log_every=50,
            compare_ranks_every=0,
        )
        self.engine = Engine(self.run)
        config = model_config(size, "swin")
        torch.manual_seed(0)
        self.model = MultiGrainModel(config).to(self.engine.device).train()
        count = self.run.batch_size
        batches = [make_batch(config, "region", count, 2 * count, seed) for seed in range(3)]
        self.batches = Clocked(batches, self.engine.device)
        objective = ObjectiveConfig()
        self.work = StepWork(config, objective, None, self.engine.device)
        self.module = PretrainingModule(self.model, objective, capacity=None)

    def bare(self, steps: int) -> float:
        """Seconds of a step without the loop."""
        trainer = make_trainer(self._stage(), self.run, _OPTIM, self.engine, Averages())
        optimizer, engine = trainer.optimizer, self.engine
        for step, batch in enumerate(self.batches(0, steps)):
            optimizer.begin_step(step)
            with engine.part(trainer.wrapped, last=True):
                losses = trainer.wrapped(batch.to(engine.device))
                loss = optimizer.scaled(losses["loss"])
            engine.backward(loss)
            optimizer.step()
        engine.unwrap(self.module)
        return self.batches.seconds_a_step()

    def looped(self, steps: int, folder: Path, **settings: Any) -> float:
        """Seconds of a step within `fit`; what its checkpoints took is among them."""
        run = replace(self.run, steps=steps, **settings)
        folder.mkdir()
        (folder / CONFIG).touch()
        quiet = StringIO()
        with (
            redirect_stdout(quiet),
            redirect_stderr(quiet),
            open_run(folder, run, self.engine) as opened,
            patch.object(self.module, "forward", self.batches.counted(self.module.forward)),
            patch.object(self.engine, "backward", self.batches.counted(self.engine.backward)),
            patch.object(Optimizer, "step", self.batches.counted(Optimizer.step)),
            patch.object(Optimizer, "begin_step", self.batches.counted(Optimizer.begin_step)),
        ):
            fit(self._stage(), run, _OPTIM, self.engine, OpenRun(opened.out, None, opened.check))
        return self.batches.seconds_a_step()

    def _stage(self) -> Stage:
        return Stage("loop", self.module, self.model, self.batches, work=self.work)


def overhead(case: Case, steps: int, rounds: int) -> Facts:
    """Bare and looped steps in turn."""
    bare, looped, own = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            bare.append(case.bare(steps))
            looped.append(case.looped(steps, Path(folder, str(number))))
            own.append(case.batches.own_share())
    ratios = [one / other for one, other in zip(looped, bare, strict=True)]
    return {
        "steps": steps,
        "rounds": rounds,
        "bare_seconds": statistics.median(bare),
        "looped_seconds": statistics.median(looped),
        "ratios": ratios,
        "added_share": statistics.median(ratios) - 1,
        "own_shares": own,
        "own_share": statistics.median(own) if case.engine.device.type == "cpu" else None,
    }


def stall(case: Case, bare_seconds: float, steps: int, saves: int) -> Facts:
    """What a save takes of the training, beyond the steps themselves.

    Runs with saves and runs without are compared as a whole, so that steps that are slower while
    files are written count as well; the last save of a run, which is waited for, is not in it.
    """
    found: Facts = {"steps": steps, "saves": saves, "every": EVERY}
    with tempfile.TemporaryDirectory() as folder:
        for name, background in (("background", True), ("waiting", False)):
            every = steps // (saves + 1)
            case.looped(
                steps, Path(folder, name), save_every=every, save_in_background=background, keep=1
            )
            asked = case.batches.asked
            gaps = [later - earlier for earlier, later in pairwise(asked)]
            at_saves = [gaps[number * every - 1] for number in range(1, saves + 1)]
            others = [g for n, g in enumerate(gaps, 1) if n % every and n > _WARM_UP]
            # The first save makes the memory that the later ones use again.
            stopped = max(0.0, statistics.median(at_saves) - bare_seconds)
            slowed = max(0.0, statistics.mean(others) - bare_seconds) * (every - 1)
            found |= {
                f"{name}_first_seconds": max(0.0, at_saves[0] - bare_seconds),
                f"{name}_seconds": stopped,
                f"{name}_slowed_seconds": slowed,
                f"{name}_stall_share": stopped / (EVERY * bare_seconds),
                f"{name}_whole_share": (stopped + slowed) / (EVERY * bare_seconds),
            }
    return found


def measure(options: argparse.Namespace) -> Facts:
    """All that was asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: Facts = {"machine": facts(device), "precision": options.precision}
    found["deepspeed"] = options.deepspeed
    for size in options.size:
        case, place = Case(options, size), SIZES.index(size)
        rows = overhead(case, options.steps[place], options.rounds)
        found[size] = {
            "batch_size": case.run.batch_size,
            "parameters": sum(p.numel() for p in case.model.parameters()),
            "overhead": rows,
            "checkpoint": stall(case, rows["bare_seconds"], options.stall_steps, options.saves),
        }
        print(described(size, found[size]), flush=True)
    return found


def _percent(share: float | None) -> str:
    return "not known on this device:" if share is None else f"{share:.2%}"


def described(size: str, row: Facts) -> str:
    """A few lines to read."""
    cost, saved = row["overhead"], row["checkpoint"]
    bare, looped = cost["bare_seconds"], cost["looped_seconds"]
    return (
        f"{size}: {row['parameters']:,} parameters, {row['batch_size']} images\n"
        f"  step     bare {bare:.4f} s, in the loop {looped:.4f} s: "
        f"{cost['added_share']:+.2%} (rounds {min(cost['ratios']) - 1:+.2%} to "
        f"{max(cost['ratios']) - 1:+.2%})\n"
        f"  own      {_percent(cost['own_share'])} of forward, backward and update\n"
        f"  save     stops {saved['background_seconds']:.2f} s (the first "
        f"{saved['background_first_seconds']:.2f} s), without a thread "
        f"{saved['waiting_seconds']:.2f} s; steps beside it lose "
        f"{saved['background_slowed_seconds']:.2f} s\n"
        f"  share    of {EVERY} steps: stopped {saved['background_stall_share']:.3%}, with slower "
        f"steps {saved['background_whole_share']:.3%}"
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loop",
        description=__doc__.splitlines()[0] if __doc__ else "",
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--batch", nargs=2, type=int, default=[4, 16], metavar="N", help="images, base and tiny"
    )
    parser.add_argument(
        "--steps", nargs=2, type=int, default=[12, 150], metavar="N", help="a round, base and tiny"
    )
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a bare and a looped run")
    parser.add_argument("--stall-steps", type=int, default=18, help="of a run with checkpoints")
    parser.add_argument("--saves", type=int, default=2, help="checkpoints within such a run")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--deepspeed", metavar="FILE", help="as run.deepspeed")
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = build_parser().parse_args(argv)
    found = measure(options)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
