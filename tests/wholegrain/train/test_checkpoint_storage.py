"""Storage that gives no answer is no damage to what it holds."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wholegrain.errors import CheckpointError, run_cli
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint import CHECKSUMS, STATE, StorageError, newest_whole, verify
from wholegrain.train.checkpoint_writer import Writer

NO_ANSWER = [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT]


class Storage:
    """Gives no answer about one place, for a while or for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = ""
        self.asked: object = None
        self.left = 10**6
        self.number = errno.EIO
        self.patch = monkeypatch
        for owner, name in ((os, "listdir"), (Path, "stat"), (Path, "read_text")):
            self._guard(owner, name)
        self._guard(checkpoint, "file_sum")

    def _guard(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def guarded(path: Path, *given: object, **more: object) -> object:
            here = self.place and str(path).endswith(self.place) and self.asked in {None, owner}
            if self.left and here:
                self.left -= 1
                raise OSError(self.number, os.strerror(self.number), str(path))
            return real(path, *given, **more)

        self.patch.setattr(owner, name, guarded)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 3 and 6."""
    writer = Writer(
        tmp_path,
        rank=0,
        world=1,
        keep=9,
        keep_every=0,
        background=False,
        say=pytest.fail,
        patience_s=9,
    )
    for step in (3, 6):
        writer.save(step, {"w": torch.zeros(4)}, [], {}, {"a.json": "{}"})
    writer.wait()
    return tmp_path


@pytest.fixture
def storage(run: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(checkpoint, "_PAUSE_S", 0.0)
    return Storage(monkeypatch)


PLACES = [
    "step_000006/model.safetensors",
    "step_000006/a.json",
    f"step_000006/{STATE}",
    f"step_000006/{CHECKSUMS}",
    "step_000006/COMPLETE",
    "checkpoints",
]


@pytest.mark.parametrize("number", NO_ANSWER)
@pytest.mark.parametrize("place", PLACES)
def test_no_answer_ends_the_start_and_renames_nothing(
    run: Path, storage: Storage, place: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.place, storage.number = place, number

    def start(argv: object = None) -> int:
        newest_whole(run, "auto", pytest.fail)
        return 0

    assert run_cli(start) == 1, "a crash, which is started again"
    said = capsys.readouterr().err
    assert f"{place}: cannot be read ({os.strerror(number)}, 4 times in a row)" in said
    assert "start again when the storage answers" in said and said.count("\n") == 1
    storage.place = ""
    assert [found.step for found in checkpoint.complete(run)] == [3, 6]


@pytest.mark.parametrize("place", PLACES)
def test_an_answer_that_comes_late_is_as_good(run: Path, storage: Storage, place: str) -> None:
    storage.place, storage.left = place, 3
    found = newest_whole(run, "auto", pytest.fail)
    assert found is not None and found.step == 6
    assert storage.left == 0


def test_bytes_that_cannot_be_read_though_the_file_is_there(run: Path, storage: Storage) -> None:
    storage.place, storage.asked = "step_000006/model.safetensors", checkpoint
    with pytest.raises(StorageError, match=r"step_000006/model\.safetensors: cannot be read"):
        newest_whole(run, "auto", pytest.fail)


def test_a_number_of_a_step_is_no_different(run: Path, storage: Storage) -> None:
    storage.place = "step_000003/a.json"
    with pytest.raises(StorageError):
        newest_whole(run, 3, pytest.fail)
    storage.place = ""
    assert [found.step for found in checkpoint.complete(run)] == [3, 6]


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"), [(Path.unlink, "is missing"), (replaced_by_a_folder, "")]
)
@pytest.mark.parametrize("name", ["model.safetensors", STATE, CHECKSUMS])
def test_what_is_not_there_is_damage(
    run: Path, damage: Callable[[Path], None], reason: str, name: str
) -> None:
    newest = checkpoint.latest(run)
    assert newest is not None
    damage(newest.folder / name)
    assert reason in str(verify(newest)) and str(verify(newest)).startswith(name)
    found = newest_whole(run, "auto", lambda line: None)
    assert found is not None and found.step == 3


def test_renames_can_be_put_off(run: Path) -> None:
    said: list[str] = []
    renames: list[Callable[[], None]] = []
    found = newest_whole(run, 3, said.append, renames.append)
    assert found is not None and found.step == 3
    assert [c.step for c in checkpoint.complete(run)] == [3, 6] and said == []
    for rename in renames:
        rename()
    assert [c.step for c in checkpoint.complete(run)] == [3]
    assert "step_000006 is now called step_000006.set-aside: the run continues from" in said[0]


def test_the_error_is_one_of_a_checkpoint() -> None:
    """Rank 0's is sent to the others, which all end with its status."""
    assert issubclass(StorageError, CheckpointError)
    assert StorageError("x").exit_status == 1
