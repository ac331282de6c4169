"""A run folder in use: who holds it, and which checkpoint its run goes on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wholegrain.errors import CheckpointError
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint import Checkpoint
from wholegrain.train.config import RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.run_folder import refuse_foreign
from wholegrain.train.run_lock import RunLock
from wholegrain.train.shared_folder import check_run_folder
from wholegrain.train.together import on_main

_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


@dataclass(frozen=True)
class OpenRun:
    """A run folder that this run holds."""

    out: Path
    begin: Checkpoint | None
    """Where the run goes on; None where it begins."""
    check: Callable[[], None] = lambda: None
    """Raises once another run has taken the folder over. Rank 0 asks before it writes."""


@contextmanager
def open_run(out: Path, run: RunConfig, engine: Engine) -> Iterator[OpenRun]:
    """Holds the run folder within the block; every rank calls it.

    Raises:
        ConfigError: the folder cannot be written, is not the same on all ranks, holds something
            else, or is held by another run; says by whom.
        CheckpointError: `run.resume` asks for what is not there, or no checkpoint is whole.
    """
    on_main(lambda: refuse_foreign(out))
    made = not out.exists()
    check_run_folder(out, engine.rank, engine.world)
    lock = RunLock(out)
    on_main(lock.acquire)
    try:
        resume = "auto" if _restarted() else run.resume
        step = on_main(lambda: _step_of(checkpoint.newest_whole(out, resume, print)))
        yield OpenRun(out, _at(out, step), lock.check if engine.is_main else lambda: None)
    finally:
        if engine.is_main:
            lock.release()
            if made:
                with suppress(OSError):  # something is in it: the run began
                    out.rmdir()


def _restarted() -> bool:
    """Whether a scheduler or launcher started this again by itself.

    A user's number of a step is meant once: it must not take a run back at every restart.
    """
    counts = (os.environ.get(name, "0") for name in _RESTARTS)
    return any(count.isdecimal() and int(count) > 0 for count in counts)


def _step_of(found: Checkpoint | None) -> int | None:
    return found.step if found else None


def _at(out: Path, step: int | None) -> Checkpoint | None:
    if step is None:
        return None
    for found in checkpoint.complete(out):
        if found.step == step:
            return found
    raise CheckpointError(
        f"{out}: this rank does not see the checkpoint of step {step} that rank 0 sees; put the "
        "run folder on storage that all nodes share"
    )
