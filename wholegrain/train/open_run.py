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
from wholegrain.train.run_folder import refuse_foreign, replace_text
from wholegrain.train.run_lock import RunLock
from wholegrain.train.shared_folder import check_run_folder
from wholegrain.train.together import on_main

_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
_WISH = ".resume"
"""The step that a start was told to take, until it has set later ones aside."""


@dataclass(frozen=True)
class OpenRun:
    """A run folder that this run holds."""

    out: Path
    begin: Checkpoint | None
    """Where the run goes on; None where it begins."""
    check: Callable[[], None] = lambda: None
    """Raises once another run has taken the folder over. Rank 0 asks before it writes."""
    retire: Callable[[], None] = lambda: None
    """Renames the checkpoints that `begin` passes over. Every rank calls it, after all that could
    refuse the run, which would otherwise have lost them to a start that never was, and before the
    first save."""


@contextmanager
def open_run(out: Path, run: RunConfig, engine: Engine) -> Iterator[OpenRun]:
    """Holds the run folder within the block; every rank calls it.

    Raises:
        ConfigError: the folder cannot be written, is not the same on all ranks, holds something
            else, or is held by another run; says by whom.
        CheckpointError: `run.resume` asks for what is not there, no checkpoint is whole, or the
            storage gives no answer.
    """
    on_main(lambda: refuse_foreign(out))
    made = not out.exists()
    check_run_folder(out, engine.rank, engine.world)
    lock = RunLock(out)
    on_main(lock.acquire)
    try:
        renames: list[Callable[[], None]] = []
        step = on_main(lambda: _choose(out, run, renames))
        check = lock.check if engine.is_main else lambda: None

        def retire() -> None:
            check()
            for rename in renames:
                rename()
            (out / _WISH).unlink(missing_ok=True)

        yield OpenRun(out, _at(out, step), check, lambda: on_main(retire))
    finally:
        if engine.is_main:
            lock.release()
            if made:
                with suppress(OSError):  # something is in it: the run began
                    out.rmdir()


def _choose(out: Path, run: RunConfig, renames: list[Callable[[], None]]) -> int | None:
    """The step that this start goes on from, on rank 0.

    A user's number of a step is meant once: it must not take a run back at every restart. But a
    start that ended before it had set the later ones aside has not been that once.
    """
    wish = out / _WISH
    resume = run.resume
    if _restarted():
        resume = int(wish.read_text(encoding="ascii")) if wish.exists() else "auto"
    found = checkpoint.newest_whole(out, resume, print, renames.append)
    if renames and isinstance(resume, int):
        replace_text(wish, str(resume))
    else:
        wish.unlink(missing_ok=True)
    return found.step if found else None


def _restarted() -> bool:
    """Whether a scheduler or launcher started this again by itself."""
    counts = (os.environ.get(name, "0") for name in _RESTARTS)
    return any(count.isdecimal() and int(count) > 0 for count in counts)


def _at(out: Path, step: int | None) -> Checkpoint | None:
    if step is None:
        return None
    for found in checkpoint.patiently(lambda: checkpoint.complete(out), out / "checkpoints"):
        if found.step == step:
            return found
    raise CheckpointError(
        f"{out}: this rank does not see the checkpoint of step {step} that rank 0 sees; put the "
        "run folder on storage that all nodes share"
    )
