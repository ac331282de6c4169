"""A save that takes long is waited for; one of a run that lost its folder leaves no trace there."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wholegrain.errors import CheckpointError
from wholegrain.model.tensor_file import Sum
from wholegrain.train import checkpoint, checkpoint_writer
from wholegrain.train.checkpoint_writer import Writer
from wholegrain.train.pulse import Pulse
from wholegrain.train.run_lock import LockLost

STEP = 5


def writers(
    run: Path, world: int, said: list[str], check: Callable[[], None] = lambda: None, **given: Any
) -> list[Writer]:
    settings: dict[str, Any] = {"keep": 1, "keep_every": 0, "background": True, "patience_s": 30.0}
    return [
        Writer(run, rank=rank, world=world, say=said.append, check=check, **settings | given)
        for rank in range(world)
    ]


def begin(writer: Writer, rank: int, step: int = STEP) -> None:
    weights = {"w": torch.zeros(4)} if rank == 0 else None
    writer.save(step, weights, [], {} if rank == 0 else None, {})


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The storage takes long for the weights, and shows nothing meanwhile."""
    write = checkpoint_writer.write_tensors

    def slow(*given: Any) -> Sum:
        time.sleep(seconds)
        return write(*given)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", slow)


def test_a_rank_0_that_writes_for_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, 2.5)
    said: list[str] = []
    ranks = writers(tmp_path, 2, said, patience_s=1.0)
    for rank in (1, 0):
        begin(ranks[rank], rank)
    for writer in reversed(ranks):
        writer.wait()
    assert said == [] and names(tmp_path) == [f"step_{STEP:06d}"]
    found = checkpoint.complete(tmp_path)[0]
    assert checkpoint.verify(found) is None
    files = {"COMPLETE", "checksums.json", "model.safetensors", "state.json"}
    assert {path.name for path in found.folder.iterdir()} == files


def test_a_rank_0_that_is_closing_is_waited_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a run that failed, rank 0 still finishes what is under way."""
    slowed(monkeypatch, 2.0)
    monkeypatch.setattr(checkpoint_writer, "_CLOSING_S", 0.5)
    ranks = writers(tmp_path, 2, [], patience_s=1.0)
    for rank in (0, 1):
        begin(ranks[rank], rank)
    for writer in reversed(ranks):
        writer.close()
    ranks[1].wait()
    assert checkpoint.complete(tmp_path) != []


def test_a_rank_0_that_is_gone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died while it wrote: there is a folder, and the pulse has stopped."""
    monkeypatch.setattr(Pulse, "_beat", lambda pulse: None)
    slowed(monkeypatch, 2.0)
    ranks = writers(tmp_path, 2, [], patience_s=0.5)
    for rank in (0, 1):
        begin(ranks[rank], rank)
    with pytest.raises(CheckpointError, match=r"nor given a sign of life for 0\.5 s"):
        ranks[1].wait()
    ranks[0].close()


def test_a_run_that_lost_its_folder_takes_its_own_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is taken over while it writes; the new owner is in the middle of a save too."""
    said: list[str] = []
    lost: list[bool] = []

    def check() -> None:
        if lost:
            raise LockLost(".lock: the run folder was taken over")

    (writer,) = writers(tmp_path, 1, said, check)
    begin(writer, 0, step=3)
    writer.wait()
    parent = tmp_path / "checkpoints"
    write = checkpoint_writer.write_tensors

    def taken_over(*given: Any) -> Sum:
        lost.append(True)
        (parent / ".step_000007.partial-2-beef").mkdir()
        # The other run replaces a checkpoint, and is between the two renames.
        (parent / "step_000003").rename(parent / ".step_000003.replaced")
        return write(*given)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", taken_over)
    begin(writer, 0)
    with pytest.raises(CheckpointError, match="the run folder was taken over"):
        writer.wait()
    assert names(tmp_path) == [".step_000003.replaced", ".step_000007.partial-2-beef"]


def test_a_save_that_fails_because_the_new_owner_swept_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is of a file that is gone; a record of it would fail the other run's save."""
    lost: list[bool] = []

    def check() -> None:
        if lost:
            raise LockLost(".lock: the run folder was taken over")

    (writer,) = writers(tmp_path, 1, [], check)

    def swept(path: Path, *given: Any) -> Sum:
        lost.append(True)
        shutil.rmtree(path.parent)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(checkpoint_writer, "write_tensors", swept)
    begin(writer, 0)
    with pytest.raises(CheckpointError, match="No such file or directory"):
        writer.wait()
    assert names(tmp_path) == []
