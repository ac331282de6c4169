"""What a checkpoint of the loop is made of, and how a run goes on from one."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from wholegrain.errors import CheckpointError
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint_writer import Writer
from wholegrain.train.divergence import compare_ranks, weights_checksum
from wholegrain.train.journal import METRICS, has_line
from wholegrain.train.together import on_main

if TYPE_CHECKING:
    from collections.abc import Callable

    from wholegrain.train.checkpoint import Checkpoint
    from wholegrain.train.config import RunConfig
    from wholegrain.train.engine import Engine
    from wholegrain.train.loop import Stage
    from wholegrain.train.open_run import OpenRun
    from wholegrain.train.updates import Trainer

_OWED = "validation_owed"


class Saver:
    """Saves a run; within the block, so that a checkpoint under way is finished in any case."""

    def __init__(
        self,
        stage: Stage,
        run: RunConfig,
        engine: Engine,
        trainer: Trainer,
        folder: OpenRun,
        say: Callable[[str], None],
    ) -> None:
        self._stage, self._run, self._engine = stage, run, engine
        self._trainer, self._folder = trainer, folder
        self._writer = Writer(
            folder.out,
            rank=engine.rank,
            world=engine.world,
            keep=run.keep,
            keep_every=run.keep_every,
            background=run.save_in_background,
            say=say,
            # A rank that waits in a save fails it before it counts as hung itself.
            patience_s=run.patience_s / 2,
            check=folder.check,
        )
        engine.wait()  # what an earlier start left half written is gone

    def compare(self, done: int) -> None:
        """Every rank's weights must be the same; nothing is saved of ranks that differ.

        Raises:
            RankDivergence: names the ranks that differ.
        """
        if self._engine.world > 1 and self._run.compare_ranks_every and self._engine.replicated:
            compare_ranks(weights_checksum(list(self._stage.module.parameters())), done)

    def save(self, done: int, owed: bool = False) -> None:
        """Saves the state after `done` steps; training waits for a copy to host memory.

        Args:
            done: steps.
            owed: whether the validation after them is left to the start that goes on from here.
        """
        self.compare(done)
        self._folder.check()
        engine, optimizer = self._engine, self._trainer.optimizer
        # A line of metrics may be half gathered; the resumed run must write the same one.
        averages = engine.mean(self._trainer.averages.state())
        state = {
            "facts": self._stage.facts,
            "optimizer": optimizer.state(),
            "averages": averages,
            "lost_in_a_row": self._trainer.lost.state(),
            _OWED: owed,
        }
        if self._stage.loss is not None:
            numbers = engine.whole_weights(self._stage.loss)
            state["loss"] = {name: float(value) for name, value in (numbers or {}).items()}
        self._writer.save(
            done,
            engine.whole_weights(self._stage.model),
            optimizer.fragments(),
            state if engine.is_main else None,
            self._stage.files,
        )

    def wait(self) -> None:
        """Until the last checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self._writer.wait()

    def settle(self) -> None:
        """Lets a checkpoint under way come to its end, whatever that is."""
        self._writer.close()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.settle()


def load_weights_of(found: Checkpoint | None, stage: Stage) -> None:
    """Loads the weights that a run goes on from, before the model is wrapped.

    Raises:
        CheckpointError: it is of other data, of another batch size or of another model.
    """
    if found is None:
        return
    before = found.state().get("facts", {})
    for name, value in stage.facts.items():
        if before.get(name) != value:
            raise CheckpointError(
                f"{found.folder}: was made with {name} {before.get(name)!r}, this run has "
                f"{value!r}; give another --out, or the old value"
            )
    found.load(stage.model)
    kept = found.state().get("loss", {})
    numbers = {} if stage.loss is None else stage.loss.state_dict()
    if set(kept) != set(numbers):
        raise CheckpointError(
            f"{found.folder}: holds the loss's numbers {sorted(kept)}, this run learns "
            f"{sorted(numbers)}; give another --out, or the old loss"
        )
    for name, value in numbers.items():
        value.fill_(kept[name])


def load_optimizer_of(found: Checkpoint | None, trainer: Trainer) -> int:
    """Loads the rest, after the model is wrapped; returns the step to go on at."""
    if found is None:
        return 0
    state = found.state()
    trainer.optimizer.load(found.optimizer())
    trainer.optimizer.load_state(state.get("optimizer", {}))
    trainer.averages.load(state.get("averages", {}))
    trainer.lost.load(state.get("lost_in_a_row", {}))
    return found.step


def owes_validation(folder: OpenRun) -> bool:
    """Whether the checkpoint that a run goes on from was saved without the validation due there.

    Every rank calls it, and gets the same.
    """
    begin = folder.begin
    if begin is None or not begin.state().get(_OWED):
        return False
    # A start between that one and this may have made up for it.
    return on_main(lambda: not has_line(folder.out / METRICS, begin.step, "val"))


def newest_of(folder: OpenRun) -> str:
    """The newest checkpoint, in words."""
    newest = checkpoint.latest(folder.out)
    return str(newest.folder) if newest else "none yet"
