"""Trains a toy that saves in the background, and kills it again and again at random moments.

``python -m tests.wholegrain.train.checkpoint_program FOLDER KILLS SEED`` prints a JSON object. Each
life is a set of forked processes (torch is imported once), one a rank, of which there are one to
three, each time another number. All get SIGKILL together, as from the kernel or a scheduler.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from tests.wholegrain.train.toy_state import Toy
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint_writer import Writer

ROWS, SAVE_EVERY, WORLDS = 40_000, 3, (1, 2, 1, 3)
KEEP, KEEP_EVERY = 2, 60
PATIENCE_S = 60.0
TRAINED = 0.8  # of the lives; the others may end while they read a checkpoint or sweep


@dataclass(frozen=True)
class Life:
    """The ranks of one life, which meet once and tell when they begin to train."""

    run: Path
    world: int
    meeting: Barrier
    begun: Event
    parent: int
    """Whose end the ranks do not survive."""

    def live(self, rank: int) -> None:
        """One rank: goes on from the newest whole checkpoint, until it is killed."""
        if rank == 0:
            checkpoint.newest_whole(self.run, "auto", _refuse)
        writer = Writer(
            self.run,
            rank=rank,
            world=self.world,
            keep=KEEP,
            keep_every=KEEP_EVERY,
            background=True,
            say=_refuse,
            patience_s=PATIENCE_S,
        )
        self.meeting.wait(PATIENCE_S)
        found, toy = checkpoint.latest(self.run), Toy(ROWS)
        if found:
            toy.load(found)
        self.begun.set()
        while os.getppid() == self.parent:
            toy.advance(toy.done + SAVE_EVERY)
            toy.save(writer, rank, self.world)

    def begin(self, rank: int) -> int:
        """Forks a process that is this rank; its number."""
        child = os.fork()
        if child == 0:
            try:
                self.live(rank)
            finally:
                traceback.print_exc()
                os._exit(1)
        return child


def life_and_death(run: Path, world: int, until: Callable[[Life], object]) -> None:
    """Begins all ranks, and kills all of them after `until` returns."""
    fork = multiprocessing.get_context("fork")
    life = Life(run, world, fork.Barrier(world), fork.Event(), os.getpid())
    children = [life.begin(rank) for rank in range(world)]
    try:
        until(life)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    for child in children:
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"a rank ended by itself with status {status}")


def main(folder: Path, kills: int, seed: int) -> None:
    """Lives and kills; what was found after each."""
    # The first update of a process imports for seconds; lives that are forked later have it.
    chance, undisturbed = random.Random(seed), Toy(ROWS).advance(1)
    save_s = _seconds_of_a_save(folder)
    steps: list[int] = []
    problems: list[str] = []
    rests = {"partial": 0, "removed": 0, "replaced": 0}

    def until(life: Life) -> None:
        if chance.random() < TRAINED:
            life.begun.wait(PATIENCE_S)
        time.sleep(chance.uniform(0, 3 * save_s))

    for kill in range(kills):
        life_and_death(folder, WORLDS[kill % len(WORLDS)], until)
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        for kind in rests:
            rests[kind] += any(name.startswith(".") and kind in name for name in names)
        problems += [name for name in names if "damaged" in name]
        for found in checkpoint.complete(folder):
            problems += filter(None, [checkpoint.verify(found)])
        newest = checkpoint.latest(folder)
        assert newest is not None
        steps.append(newest.step)
        if Toy(ROWS).load(newest).digest() != undisturbed.advance(newest.step).digest():
            problems.append(f"step {newest.step} is not what an undisturbed run has")
    kept = [found.step for found in checkpoint.complete(folder)]
    print(json.dumps({"steps": steps, "problems": problems, "rests": rests, "kept": kept}))


def _seconds_of_a_save(folder: Path) -> float:
    """How long a save takes here and now, from a first life that ends after two of them."""
    began = [0.0]

    def until(life: Life) -> None:
        life.begun.wait(PATIENCE_S)
        began[0] = time.monotonic()
        while len(checkpoint.complete(folder)) < KEEP:
            if time.monotonic() - began[0] > PATIENCE_S:
                raise SystemExit("nothing was saved")
            time.sleep(0.001)

    life_and_death(folder, 1, until)
    return (time.monotonic() - began[0]) / KEEP


def _refuse(line: str) -> None:
    raise AssertionError(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
