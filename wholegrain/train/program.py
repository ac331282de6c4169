"""A stage's program, once its command line is read: a plan on paper, or the run in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from wholegrain.train.command import Command
from wholegrain.train.config import RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.open_run import OpenRun, open_run


class StageConfig(Protocol):
    """What every stage's configuration says."""

    @property
    def run(self) -> RunConfig: ...

    @property
    def out(self) -> str: ...


C = TypeVar("C", bound=StageConfig)


def run_stage(
    command: Command[C],
    plan: Callable[[Command[C], Engine], str],
    train: Callable[[Command[C], Engine, OpenRun], None],
) -> int:
    """Runs a stage, or with ``--dry-run`` prints what it would be; returns the exit status.

    Args:
        command: the user's.
        plan: takes a few steps, of which nothing is kept, and says what the run will be.
        train: the whole run, in a folder that it holds.
    """
    config = command.config
    engine = Engine(config.run)
    if command.dry_run:
        planned = plan(command, engine)
        if engine.is_main:
            print(planned)
    else:
        with open_run(Path(config.out), config.run, engine) as folder:
            train(command, engine, folder)
    engine.close()
    return 0
